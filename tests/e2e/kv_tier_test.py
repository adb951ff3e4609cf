#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Pages of the prefix cache on the host and on disk, end to end: a conversation that goes on after
`kill -9`, changed files, a full disk, and the command that empties the folder.

    BINARY_UNDER_TEST=build/kivi tests/e2e/kv_tier_test.py [-k NAME]
"""

import os
import pathlib
import random
import resource
import tempfile
import time
import unittest

from harness import MODEL, Server, kivi

FORMAT = ("--kivi-residual-length", "32", "--kv-cache-dtype", "kivi2.5")
HOST = ("--kv-host-memory", str(64 << 20))


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def ids_of(seed, count):
    source = random.Random(seed)
    return [source.randrange(3, 900) for _ in range(count)]


class Disk(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.pages = os.path.join(self.folder.name, "pages")

    def serve(self, *arguments, disk=True):
        more = ("--kv-disk", self.pages, "--kv-disk-bytes", "1000000000") if disk else ()
        server = Server(*FORMAT, *HOST, *more, *arguments)
        self.addCleanup(server.close)
        return server

    def ask(self, server, ids, **more):
        reply = server.complete(prompt=ids, temperature=0, max_tokens=60, ignore_eos=True,
                                return_token_ids=True, **more)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def chat(self, server, ids, turns):
        """Asks so often; the conversation then, and what was cached in the last turn."""
        for turn in range(turns):
            reply = self.ask(server, ids)
            ids = ids + reply["choices"][0]["token_ids"] + ids_of(turn, 40)
        return ids, cached(reply)

    def wait_written(self, server):
        before, deadline = -1, time.monotonic() + 30
        while time.monotonic() < deadline:
            written = server.metric("prefix_cache_disk_written_bytes_total")
            if written == before and written > 0:
                return
            before = written
            time.sleep(0.3)
        self.fail("nothing is written to disk, or it does not end")

    def test_a_conversation_goes_on_after_kill_9(self):
        for key in (False, True):
            with self.subTest(key=key):
                self.pages = os.path.join(self.folder.name, f"pages-{key}")
                more = ()
                if key:
                    path = pathlib.Path(self.folder.name) / "key"
                    path.write_text("ab" * 32)
                    path.chmod(0o600)
                    more = ("--kv-disk-key-file", str(path))
                start = ids_of("start", 150)
                server = self.serve(*more)
                ids, _ = self.chat(server, start, 3)
                self.wait_written(server)
                server.process.kill()
                server.process.wait()
                server = self.serve(*more)
                after = self.ask(server, ids)
                # The same conversation in a server that nobody stops.
                whole = self.serve(disk=False)
                same, _ = self.chat(whole, start, 3)
                self.assertEqual(same, ids)
                expected = self.ask(whole, ids)
                self.assertEqual(after["choices"][0]["token_ids"],
                                 expected["choices"][0]["token_ids"])
                self.assertEqual(cached(after), cached(expected))
                self.assertGreater(cached(after), 300)
                self.assertGreaterEqual(server.metric("prefix_cache_fetched_total"), cached(after))
                for file in pathlib.Path(self.pages).iterdir():
                    self.assertEqual(file.stat().st_mode & 0o077, 0, file)
                # Its salt is not another's.
                self.assertEqual(cached(self.ask(server, ids, cache_salt="other")), 0)

    def test_changed_files_are_dropped(self):
        server = self.serve()
        prompt = ids_of("changed", 400)
        self.ask(server, prompt)
        expected = self.ask(server, prompt)
        self.assertGreater(cached(expected), 300)
        self.wait_written(server)
        server.close()
        files = [f for f in pathlib.Path(self.pages).iterdir()
                 if f.suffix in (".block", ".checkpoint")]
        for file in files:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        server = self.serve()
        reply = self.ask(server, prompt)
        self.assertEqual(cached(reply), 0)
        self.assertGreater(server.metric("prefix_cache_disk_failures_total"), 0)
        again = self.ask(server, prompt)
        self.assertEqual(cached(again), cached(expected))
        self.assertEqual(again["choices"][0]["token_ids"], expected["choices"][0]["token_ids"])

    def test_a_full_disk_costs_no_request(self):
        class Limited(Server):
            # Files of more than 4 KiB cannot be written. The log is short enough.
            preexec = staticmethod(lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                                              (4096, 4096)))
        server = Limited(*FORMAT, *HOST, "--kv-disk", self.pages, "--kv-disk-bytes", "1000000000",
                         "--log-level", "error")
        self.addCleanup(server.close)
        prompt = ids_of("full", 400)
        self.ask(server, prompt)
        self.assertGreater(cached(self.ask(server, prompt)), 300)
        deadline = time.monotonic() + 10
        while server.metric("prefix_cache_disk_failures_total") == 0:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        self.assertEqual(server.metric("prefix_cache_disk_bytes"), 0)
        left = {f.name for f in pathlib.Path(self.pages).iterdir()}
        self.assertEqual(left, {"lock", "secret"})

    def test_a_second_server_reads_and_the_folder_can_be_emptied(self):
        server = self.serve()
        prompt = ids_of("second", 400)
        self.ask(server, prompt)
        expected = self.ask(server, prompt)
        self.wait_written(server)
        code, _, err = kivi("serve", MODEL, *FORMAT, *HOST, "--port", "0", "--grpc-port", "-1",
                            "--kv-disk", self.pages, "--kv-disk-bytes", "1000000")
        self.assertNotEqual(code, 0)
        self.assertIn("--kv-disk-read-only", err)
        code, _, err = kivi("clear-kv-disk", self.pages)
        self.assertEqual(code, 1, err)
        reader = Server(*FORMAT, *HOST, "--kv-disk", self.pages, "--kv-disk-read-only")
        self.addCleanup(reader.close)
        reply = self.ask(reader, prompt)
        self.assertEqual(cached(reply), cached(expected))
        self.assertEqual(reply["choices"][0]["token_ids"], expected["choices"][0]["token_ids"])
        server.close()
        reader.close()
        code, out, err = kivi("clear-kv-disk", self.pages)
        self.assertEqual(code, 0, err)
        self.assertIn("files removed", out)
        self.assertEqual({f.name for f in pathlib.Path(self.pages).iterdir()}, {"lock"})


class Settings(unittest.TestCase):
    def test_the_plan_shows_it_and_bad_settings_are_named(self):
        code, out, err = kivi("serve", MODEL, *FORMAT, *HOST, "--kv-disk", "/nowhere",
                              "--kv-disk-bytes", "1000000", "--dry-run")
        self.assertEqual(code, 0, err)
        self.assertIn("in the host's memory", out)
        self.assertIn("files in /nowhere", out)
        for field, arguments in (
                ("kv_host_memory", ("--kv-host-memory", "1000")),
                ("kv_host_memory", (*HOST, "--no-enable-prefix-caching")),
                ("kv_host_memory", ("--kv-disk", "/tmp/x", "--kv-disk-bytes", "1")),
                ("kv_disk_bytes", (*HOST, "--kv-disk", "/tmp/x")),
                ("kv_disk_bytes", ("--kv-disk-bytes", "1")),
                ("kv_disk_key_file", ("--kv-disk-key-file", "x")),
                ("kv_disk_read_only", ("--kv-disk-read-only",))):
            with self.subTest(arguments=arguments):
                code, _, err = kivi("serve", MODEL, *FORMAT, "--dry-run", *arguments)
                self.assertEqual(code, 2, err)
                self.assertIn(field.replace("_", "-"), err.replace("_", "-"))


if __name__ == "__main__":
    unittest.main()
