#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a start refuses: files that are no files, and more memory than there is.

    BINARY_UNDER_TEST=build/kivi tests/attack/start_test.py [-k NAME]
"""

import json
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from harness import KIVI, MODEL, Server, environment, kivi  # noqa: E402
from ports import free_port  # noqa: E402


class SpecialFiles(unittest.TestCase):
    """A FIFO without a writer must be refused, and must not be waited for."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def model_with(self, name, kind):
        """A copy of the model whose file `name` is a FIFO or a link to a device."""
        model = self.folder / f"{kind}-{name}"
        shutil.copytree(MODEL, model)
        (model / name).unlink()
        self.put(model / name, kind)
        return str(model)

    @staticmethod
    def put(path, kind):
        if kind == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    def sharded_model(self, kind):
        """A copy of the model in two shards by an index. The second one is a FIFO or a device."""
        model = self.folder / f"{kind}-shards"
        shutil.copytree(MODEL, model)
        shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        (model / "model.safetensors").rename(model / shards[0])
        self.put(model / shards[1], kind)
        tensors = sorted(header_of(model / shards[0]))
        half = len(tensors) // 2
        (model / "model.safetensors.index.json").write_text(json.dumps(
            {"weight_map": {name: shards[i >= half] for i, name in enumerate(tensors)}}))
        return str(model), shards[1]

    def test_a_model_file_that_is_a_fifo_or_a_device_is_refused_by_name(self):
        for name in ("model.safetensors", "config.json", "tokenizer.model"):
            if not (pathlib.Path(MODEL) / name).exists():
                continue
            for kind in ("FIFO", "device"):
                with self.subTest(name=name, kind=kind):
                    code, _, error = kivi("generate", self.model_with(name, kind), "--max-tokens",
                                          "1", "--prompt", "x")
                    self.assertIn(code, (1, 2), error)
                    self.assertIn(name, error)
                    self.assertIn(f"is a {kind}, must be a regular file", error)

    def test_a_shard_of_an_index_that_is_a_fifo_or_a_device_is_refused_by_name(self):
        for kind in ("FIFO", "device"):
            with self.subTest(kind=kind):
                model, shard = self.sharded_model(kind)
                code, _, error = kivi("generate", model, "--max-tokens", "1", "--prompt", "x")
                self.assertIn(code, (1, 2), error)
                self.assertIn(f"{shard}: is a {kind}, must be a regular file", error)

    def test_a_gguf_file_that_is_a_fifo_or_a_device_is_refused_by_name(self):
        for kind in ("FIFO", "device"):
            folder = self.folder / f"{kind}-folder"
            folder.mkdir()
            self.put(folder / "model.gguf", kind)
            for place in (folder / "model.gguf", folder):
                with self.subTest(kind=kind, place=place.name):
                    code, _, error = kivi("generate", str(place), "--max-tokens", "1", "--prompt",
                                          "x")
                    self.assertIn(code, (1, 2), error)
                    self.assertIn(f"model.gguf: is a {kind}, must be a regular file", error)

    def test_a_settings_file_or_key_file_that_is_a_fifo_is_refused(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        for flag in ("--config", "--api-key-file"):
            with self.subTest(flag=flag):
                code, _, error = kivi("serve", MODEL, flag, str(fifo))
                self.assertEqual(code, 2, error)
                self.assertIn(flag, error)
                self.assertIn("must be a regular file", error)

    def test_a_key_of_the_disk_that_is_a_fifo_is_refused(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo, 0o600)
        code, _, error = kivi("serve", MODEL, "--port", "0", "--grpc-port", "-1", "--kv-disk",
                              str(self.folder / "pages"), "--kv-disk-bytes", "1GB",
                              "--kv-host-memory", "16MiB", "--kv-disk-key-file", str(fifo))
        self.assertEqual(code, 1, error)
        self.assertIn(f"kv_disk_key_file is {fifo}: is a FIFO, must be a regular file", error)


def header_of(path):
    """The entries of a safetensors file, by tensor."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    return header


def spoil(model, tensor, value):
    """Overwrites the first element of a tensor in the folder `model` with a float."""
    path = pathlib.Path(model) / "model.safetensors"
    data = bytearray(path.read_bytes())
    header_bytes, = struct.unpack_from("<Q", data)
    entry = json.loads(data[8:8 + header_bytes])[tensor]
    at = 8 + header_bytes + entry["data_offsets"][0]
    if entry["dtype"] == "F32":
        data[at:at + 4] = struct.pack("<f", value)
    elif entry["dtype"] == "F16":
        data[at:at + 2] = struct.pack("<e", value)
    else:  # BF16: the upper half of a float
        data[at:at + 2] = struct.pack("<f", value)[2:]
    path.write_bytes(data)


class BrokenWeights(unittest.TestCase):
    """Logits that are not finite must end the request, and must not be served as a text."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.models = {}
        for name, value in (("nan", float("nan")), ("infinity", float("inf"))):
            model = f"{cls.folder.name}/{name}"
            shutil.copytree(MODEL, model)
            spoil(model, "model.norm.weight", value)
            cls.models[name] = model

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_generate_ends_with_an_error(self):
        for name, model in self.models.items():
            for more in ((), ("--temperature", "0"), ("--top-p", "0.9")):
                with self.subTest(name=name, more=more):
                    code, _, error = kivi("generate", model, "--prompt", "x", "--max-tokens", "3",
                                          *more)
                    self.assertEqual(code, 1, error)
                    self.assertIn("not finite", error)

    def test_a_request_ends_with_an_error_a_line_in_the_log_and_a_count(self):
        server = Server("--served-model-name", "tales-llama", model=self.models["nan"])
        self.addCleanup(server.close)
        for count, more in enumerate(({}, {"temperature": 0}, {"logprobs": 2},
                                      {"echo": True, "logprobs": 1}), start=1):
            reply = server.complete(prompt="Once", max_tokens=3, **more)
            self.assertEqual(reply.status, 500, reply.body)
            self.assertIn("not finite", reply.json()["error"]["message"])
            self.assertEqual(server.metric("broken_logits_total"), count)
        self.assertIn("not finite", server.log_text())
        self.assertIn("not finite", server.complete(prompt="x", max_tokens=3, stream=True).body)
        self.assertEqual(server.get("/health/ready").status, 200)
        self.assertTrue(server.wait_idle())


class Memory(unittest.TestCase):
    """With less memory than a start needs, it says so, and does not abort."""

    @staticmethod
    def limit(megabytes):
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    def start_limited(self, megabytes):
        """(exit code, log) of a server that does not start; None as a code: it serves."""
        with tempfile.NamedTemporaryFile("w") as log:
            text = pathlib.Path(log.name).read_text
            process = subprocess.Popen(
                [KIVI, "serve", MODEL, "--port", str(free_port()), "--grpc-port", "-1"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
                preexec_fn=self.limit(megabytes))
            deadline = time.monotonic() + 60
            while process.poll() is None:
                if " is ready after " in text():
                    process.kill()
                    process.wait()
                    return None, ""
                self.assertLess(time.monotonic(), deadline, "neither an end nor a start")
                time.sleep(0.02)
            return process.returncode, text()

    def limited(self, megabytes, *arguments):
        run = subprocess.run([KIVI, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                             text=True, env=environment(), timeout=60,
                             preexec_fn=self.limit(megabytes))
        return run.returncode, run.stderr

    def test_generate_says_how_much_of_what(self):
        told = False
        for megabytes in (200, 300, 400, 500, 600, 700):
            with self.subTest(megabytes=megabytes):
                code, error = self.limited(megabytes, "generate", MODEL, "--prompt", "x",
                                           "--max-tokens", "1")
                self.assertIn(code, (0, 1, 2), error)
                if code != 0:
                    self.assertRegex(error, r"memory|cannot be mapped", error)
                    told |= "bytes" in error or " MB" in error
        self.assertTrue(told)

    def test_serve_says_how_much_of_what(self):
        told = False
        for megabytes in (500, 600, 700, 800, 900):
            with self.subTest(megabytes=megabytes):
                code, error = self.start_limited(megabytes)
                if code is None:
                    break  # enough memory: it serves
                self.assertEqual(code, 1, error)
                self.assertRegex(error, r"no memory for|out of memory|cannot be mapped", error)
                told |= "bytes" in error or " MB" in error
        self.assertTrue(told)

    def test_memory_for_pages_on_the_host_that_is_not_there_is_told(self):
        code, _, error = kivi("serve", MODEL, "--port", "0", "--grpc-port", "-1",
                              "--kv-host-memory", str(10 ** 14))
        self.assertEqual(code, 1, error)
        self.assertIn("kv_host_memory is 100000000000000, but there is no memory", error)


if __name__ == "__main__":
    unittest.main()
