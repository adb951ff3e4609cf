#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`kivi bench serve` against the real server: what it counts is what the server's ledger says.

    BINARY_UNDER_TEST=build/kivi tests/e2e/bench_test.py [-k NAME]
"""

import json
import pathlib
import tempfile
import unittest

from harness import ROOT, WithServer, kivi


class BenchServe(WithServer):
    arguments = ("--kv-cache-dtype", "kivi4", "--chat-template",
                 str(ROOT / "tests" / "data" / "chat" / "templates" / "zephyr.jinja"))

    def bench(self, *arguments, code=0):
        """The figures of a run (JSON) and what it printed; no warm-up unless it is asked for."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "figures.json"
            got, out, err = kivi("bench", "serve", "--base-url", self.server.url(""),
                                 "--grpc-target", f"127.0.0.1:{self.server.grpc_port}",
                                 "--num-warmups", "0", "--json", str(path), *arguments)
            self.assertEqual(got, code, err)
            return (json.loads(path.read_text()) if path.exists() else None), out + err

    def ledger(self):
        self.assertTrue(self.server.wait_idle())
        names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
        return [self.server.metric(name) for name in names]

    def test_token_counts_equal_the_servers_counters_by_every_api(self):
        work = ("--num-prompts", "24", "--input-len", "3:60", "--output-len", "1:24",
                "--max-concurrency", "6", "--seed", "3")
        for api in ("completions", "chat", "grpc"):
            # Without --ignore-eos too: then the model decides how long an output is.
            for more in (("--ignore-eos",), ("--temperature", "1")):
                with self.subTest(api=api, more=more):
                    before = self.ledger()
                    figures, _ = self.bench("--api", api, *work, *more)
                    delta = [b - a for a, b in zip(before, self.ledger())]
                    self.assertEqual(figures["completed"], 24)
                    self.assertEqual(figures["token_counts"], "usage")
                    self.assertEqual([figures["total_input_tokens"],
                                      figures["total_output_tokens"], 24], delta)

    def test_under_ignore_eos_every_request_has_the_length_that_was_asked_for(self):
        for api in ("completions", "grpc"):
            figures, _ = self.bench("--api", api, "--num-prompts", "9", "--input-len", "17",
                                    "--output-len", "11", "--ignore-eos", "--save-detailed")
            self.assertEqual(figures["input_lens"], [17] * 9)
            self.assertEqual(figures["output_lens"], [11] * 9)

    def test_an_open_loop_sweep_writes_json_and_a_page(self):
        with tempfile.TemporaryDirectory() as folder:
            page = pathlib.Path(folder) / "report.html"
            figures, out = self.bench("--num-prompts", "12", "--request-rate", "20,60",
                                      "--input-len", "8", "--output-len", "8", "--ignore-eos",
                                      "--goodput", "ttft:10000", "--html", str(page))
            self.assertEqual([run["request_rate"] for run in figures["runs"]], [20, 60])
            for run in figures["runs"]:
                self.assertEqual(run["completed"], 12)
                self.assertAlmostEqual(run["request_goodput"], run["request_throughput"])
                self.assertLessEqual(run["mean_ttft_ms"], run["mean_e2el_ms"])
            self.assertIn("rate 60", out)
            text = page.read_text()
            self.assertIn("<svg", text)
            self.assertNotIn("http://", text)

    def test_cut_requests_are_counted_apart_and_leave_nothing_behind(self):
        for api in ("completions", "grpc"):
            figures, _ = self.bench("--api", api, "--num-prompts", "16", "--output-len", "400",
                                    "--input-len", "8", "--ignore-eos", "--max-concurrency", "4",
                                    "--cancel-share", "1", "--cancel-after", "5")
            self.assertEqual((figures["cancelled"], figures["completed"], figures["failed"]),
                             (16, 0, 0))
            self.assertGreaterEqual(figures["cancelled_output_tokens"], 16 * 5)
            self.assertTrue(self.server.wait_idle())

    def test_a_trace_decides_when_requests_are_due(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as trace:
            trace.write("5\n5\n5.2\n5.5\n")
            trace.flush()
            figures, _ = self.bench("--trace", trace.name, "--output-len", "2", "--input-len",
                                    "4", "--ignore-eos", "--save-detailed")
        self.assertEqual(figures["completed"], 4)
        self.assertEqual(figures["num_prompts"], 4)
        self.assertGreaterEqual(figures["duration"], 0.5)
        for got, due in zip(figures["start_times"], (0, 0, 0.2, 0.5)):
            self.assertAlmostEqual(got, due)

    def test_refusals_are_counted_by_kind_and_no_answer_at_all_is_a_failure(self):
        figures, out = self.bench("--model", "another", "--num-prompts", "3", code=1)
        self.assertEqual(figures["error_counts"], {"HTTP 404": 3})
        self.assertIn("3 x HTTP 404", out)
        _, out = self.bench("--model", "another", "--num-prompts", "3", "--api", "grpc", code=1)
        self.assertIn("gRPC NOT_FOUND", out)

    def test_a_server_that_is_not_there_is_an_error_by_address(self):
        for flag, value in (("--base-url", "http://127.0.0.1:1"), ("--grpc-target", "127.0.0.1:1")):
            api = "grpc" if flag == "--grpc-target" else "completions"
            code, _, err = kivi("bench", "serve", "--api", api, flag, value)
            self.assertEqual(code, 1, err)
            self.assertIn("127.0.0.1:1", err)


if __name__ == "__main__":
    unittest.main()
