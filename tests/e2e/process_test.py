#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The program as a process: shutdown by signals, and the commands that are no server.

    BINARY_UNDER_TEST=build/kivi tests/e2e/process_test.py [-k NAME]
"""

import json
import subprocess
import tempfile
import time
import unittest

from harness import (GREEDY_IDS, KIVI, MODEL, PROMPT_IDS, TEXT, RawStream, Server, environment,
                     kivi)


class Shutdown(unittest.TestCase):
    def setUp(self):
        self.server = Server("--kv-cache-dtype", "kivi4", "--shutdown-timeout", "120")
        self.addCleanup(self.server.close)

    def long_stream(self, server, tokens=1900):
        """A stream that has begun and would go on for a while."""
        stream = RawStream(server.port, prompt=TEXT, max_tokens=tokens, ignore_eos=True, seed=1)
        self.addCleanup(stream.close)
        self.assertTrue(stream.read_until(b"data: "))
        return stream

    def test_sigterm_finishes_a_running_stream_and_takes_no_new_work(self):
        stream = self.long_stream(self.server, tokens=500)
        self.server.terminate()
        deadline = time.monotonic() + 5
        while self.server.get("/health/ready").status == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        refused = self.server.complete(prompt="x", max_tokens=1)
        self.assertIsNone(self.server.process.poll(), "it must still be draining")
        self.assertIn(refused.status, (503, 0))  # 0: the listening socket is closed already
        if refused.status == 503:
            self.assertIn("retry-after", refused.headers)
        body = stream.read_all()
        self.assertIn(b"[DONE]", body)
        self.assertIn(b'"finish_reason":"length"', body.replace(b": ", b":"))
        self.assertEqual(self.server.process.wait(timeout=20), 0)

    def test_new_work_is_taken_during_the_drain_delay(self):
        server = Server("--drain-delay", "2")
        self.addCleanup(server.close)
        server.terminate()
        deadline = time.monotonic() + 1.5
        while server.get("/health/ready").status == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        taken = server.complete(prompt="x", max_tokens=1)
        self.assertEqual(taken.status, 200)
        self.assertEqual(taken.headers.get("connection"), "close")
        self.assertEqual(server.process.wait(timeout=10), 0)

    def test_the_log_names_each_phase_of_starting_up_and_its_time(self):
        for phase in ("config", "device", "plan", "tokenizer", "weights", "memory"):
            self.assertRegex(self.server.log_text(), rf"start-up: {phase} \d+\.\d\d s")

    def test_health_says_ready_by_its_exit_code_until_the_server_drains(self):
        port = str(self.server.port)
        self.assertEqual(kivi("health", "--port", port)[:2], (0, "ready\n"))
        # As in the image: the variables of the server say where, and a wildcard means this machine.
        self.assertEqual(kivi("health", KIVI_HOST="0.0.0.0", KIVI_PORT=port)[:2], (0, "ready\n"))
        self.long_stream(self.server, tokens=1500)
        self.server.terminate()
        deadline = time.monotonic() + 5
        while kivi("health", "--port", port)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertIsNone(self.server.process.poll(), "it must still be draining")
        self.assertEqual(kivi("health", "--port", port)[0], 1)

    def test_sigterm_of_an_idle_server_ends_soon_with_0(self):
        self.server.terminate()
        self.assertEqual(self.server.process.wait(timeout=5), 0)

    def test_a_second_sigterm_ends_at_once(self):
        self.long_stream(self.server)
        self.server.terminate()
        time.sleep(0.5)  # far longer than what counts as one signal
        self.assertIsNone(self.server.process.poll(), "the stream should keep it alive")
        self.server.terminate()
        self.server.process.wait(timeout=2)

    def test_a_signal_that_comes_twice_at_once_counts_once(self):
        # As from `timeout`, and from wrappers that pass on what their group gets anyway.
        stream = self.long_stream(self.server, tokens=300)
        for _ in range(3):
            self.server.terminate()
            time.sleep(0.005)  # signals that wait at the same time are one already
        self.assertIn(b"[DONE]", stream.read_all())
        self.assertEqual(self.server.process.wait(timeout=20), 0)

    def test_what_is_left_after_the_timeout_is_aborted(self):
        server = Server("--shutdown-timeout", "1")
        self.addCleanup(server.close)
        # Many, so that none can finish within the second.
        stream = [self.long_stream(server) for _ in range(30)][0]
        server.terminate()
        body = stream.read_all()
        self.assertIn(b'"finish_reason":"abort"', body.replace(b": ", b":"))
        server.process.wait(timeout=10)


class CommandLine(unittest.TestCase):
    def test_generate_prints_the_golden_ids(self):
        code, out, err = kivi("generate", MODEL, "--prompt-ids", ",".join(map(str, PROMPT_IDS)),
                              "--temperature", "0", "--max-tokens", str(len(GREEDY_IDS)), "--ids",
                              "--kv-cache-dtype", "fp16")
        self.assertEqual(code, 0, err)
        self.assertEqual([int(x) for x in out.split()], GREEDY_IDS)

    def test_generate_reads_standard_input_and_stops(self):
        code, whole, _ = kivi("generate", MODEL, "-p", TEXT, "--temperature", "0", "--max-tokens",
                              "30")
        self.assertEqual(code, 0)
        stop = whole[10:14]
        code, cut, _ = kivi("generate", MODEL, "-p", "-", "--temperature", "0", "--max-tokens",
                            "30", "--stop", stop, stdin=TEXT)
        self.assertEqual(code, 0)
        self.assertEqual(cut, whole[:whole.index(stop)] + "\n")

    def test_info_names_family_sizes_and_formats(self):
        code, out, err = kivi("info", MODEL)
        self.assertEqual(code, 0, err)
        for text in ("LlamaForCausalLM", "6852864", "4 query, 2 KV, of 64 channels", "sentencepiece",
                     "kivi2", "auto is kivi3.5"):
            self.assertIn(text, out)

    def test_dry_run_prints_the_plan_and_ends(self):
        for command in ("serve", "generate"):
            code, out, err = kivi(command, MODEL, "--dry-run", "--kv-cache-dtype", "kivi2")
            self.assertEqual(code, 0, err)
            for text in ("kivi2 G32 R128", "pages", "residual", "weights"):
                self.assertIn(text, out)

    def test_mistakes_end_with_2_and_say_what_is_expected(self):
        cases = [
            (("serve", MODEL, "--prot", "1"), "did you mean --port?"),
            (("serve", MODEL, "--port", "x"), "must be an integer in [-1, 65535]"),
            (("serve", MODEL, "--enable-lora"), "unknown flag --enable-lora"),
            (("serve", MODEL, "--kivi-residual-length", "48"), "kivi_residual_length is 48"),
            (("serve",), "MODEL is missing"),
            (("serve", MODEL, "--port", "-1", "--grpc-port", "-1"), "--grpc-port are both -1"),
            (("serve", MODEL, "--served-model-name", ""), '--served-model-name is ""'),
            (("serve", MODEL, "--host", "[::1]"), "without brackets"),
            (("srve", MODEL), "did you mean serve?"),
            (("bench", "kernels"), "MODEL is missing"),
            (("bench", "kernels", MODEL, "--ops", "matmull"), 'ops holds "matmull"'),
            (("bench", "serve", "--goodput", "ttft"), '--goodput is "ttft", must be'),
            (("kv-stats",), "MODEL is missing"),
            (("tune",), "MODEL is missing"),
            (("tune", MODEL, "--text", "README.md"), "--budget is missing"),
            (("generate", MODEL, "-p", "a", "--kv-layer-bits", "/nowhere"),
             'kv_layer_bits is "/nowhere"'),
            ((), "Usage: kivi COMMAND"),
        ]
        for arguments, expected in cases:
            code, _, err = kivi(*arguments)
            self.assertEqual((code, expected in err), (2, True), f"{arguments}: {code} {err}")

    def test_output_that_cannot_be_written_ends_with_1(self):
        for arguments in (("version",), ("info", MODEL), ("serve", MODEL, "--dry-run"),
                          ("generate", MODEL, "-p", "a", "--max-tokens", "3")):
            with self.subTest(arguments), open("/dev/full", "w") as full:
                run = subprocess.run([KIVI, *arguments], stdin=subprocess.DEVNULL, stdout=full,
                                     stderr=subprocess.PIPE, text=True, env=environment(),
                                     timeout=60)
                self.assertEqual(run.returncode, 1, run.stderr)
                self.assertIn("standard output cannot be written", run.stderr)

    def test_a_model_that_is_not_there_ends_with_1(self):
        for command in ("serve", "generate", "info"):
            code, _, err = kivi(command, "/nowhere", *(("-p", "x") if command == "generate" else ()))
            self.assertEqual(code, 1, err)
            self.assertIn("/nowhere", err)

    def test_variables_and_files_set_what_flags_do(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write('{"kv_cache_dtype": "fp8", "max_num_seqs": 3}')
            file.flush()
            code, out, err = kivi("serve", MODEL, "--dry-run", "--config", file.name,
                                  KIVI_KV_CACHE_DTYPE="kivi4", KIVI_PROT="1")
        self.assertEqual(code, 0, err)
        self.assertIn("kivi4 G32 R128", out)
        self.assertIn("KIVI_PROT", err)

    def test_version(self):
        code, out, _ = kivi("version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"^kivi \d+\.\d+\.\d+\n$")

    def test_bench_throughput_counts_its_tokens(self):
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            code, out, err = kivi("bench", "throughput", MODEL, "--num-prompts", "6",
                                  "--prompt-len", "8:20", "--output-len", "5", "--concurrency",
                                  "1,6", "--json", file.name)
            self.assertEqual(code, 0, err)
            report = json.load(file)
        self.assertIn("batch size over time", out)
        self.assertEqual([r["max_concurrency"] for r in report["runs"]], [1, 6])
        for run in report["runs"]:
            self.assertEqual((run["completed"], run["total_output_tokens"]), (6, 30))
        self.assertEqual(report["runs"][0]["batch_size_max"], 1)
        self.assertEqual(report["runs"][1]["batch_size_max"], 6)
        self.assertGreater(report["runs"][1]["decode"]["throughput"], 0)
        parts = ("weights", "pages", "residual", "sinks", "staging", "workspace")
        self.assertTrue(all(report["memory_bytes"][part] > 0 for part in parts), report)
        self.assertAlmostEqual(sum(v for k, v in report["startup_s"].items() if k != "total"),
                               report["startup_s"]["total"], places=6)

    def test_bench_kernels_stands_ops_beside_the_devices_rates(self):
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            code, out, err = kivi("bench", "kernels", MODEL, "--ops", "norm,kv_attend", "--formats",
                                  "kivi2", "--rows", "4", "--caches", "2x70", "--json", file.name)
            self.assertEqual(code, 0, err)
            report = json.load(file)
        self.assertEqual([row["op"] for row in report["rows"]], ["norm", "kv_attend"])
        for row in report["rows"]:
            self.assertAlmostEqual(row["gb_s"], row["bytes"] / row["us"] / 1e3, delta=1e-6)
            self.assertAlmostEqual(row["copy_share"], row["gb_s"] / report["copy_gb_s"], delta=1e-6)
        self.assertIn("(2, 70)", out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
