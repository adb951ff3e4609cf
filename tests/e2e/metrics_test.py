#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""GET /metrics against the contract: every family with its type, labels and buckets, and nothing
else; and what a client counts equals what the server counted.

    BINARY_UNDER_TEST=build/kivi tests/e2e/metrics_test.py [-k NAME]
"""

import json
import re
import subprocess
import sys
import unittest

from harness import ROOT, TEXT, Server, WithServer

TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
        80, 160, 640, 2560)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
           7680)
TOKENS = tuple(m * 10**e for e in range(5) for m in (1, 2, 5)) + (100000, 200000)
STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# name -> (type, labels besides model_name, buckets)
FAMILIES = {
    "num_requests_running": ("gauge", (), None),
    "num_requests_waiting": ("gauge", (), None),
    "kv_cache_usage_perc": ("gauge", (), None),
    "prefix_cache_queries_total": ("counter", (), None),
    "prefix_cache_hits_total": ("counter", (), None),
    "prefix_cache_reachable_total": ("counter", (), None),
    "prefix_cache_pages": ("gauge", (), None),
    "prefix_cache_checkpoints": ("gauge", (), None),
    "prefix_cache_host_bytes": ("gauge", (), None),
    "prefix_cache_host_bytes_limit": ("gauge", (), None),
    "prefix_cache_disk_bytes": ("gauge", (), None),
    "prefix_cache_disk_bytes_limit": ("gauge", (), None),
    "prefix_cache_fetched_total": ("counter", (), None),
    "prefix_cache_fetches_failed_total": ("counter", (), None),
    "prefix_cache_host_written_bytes_total": ("counter", (), None),
    "prefix_cache_host_read_bytes_total": ("counter", (), None),
    "prefix_cache_disk_written_bytes_total": ("counter", (), None),
    "prefix_cache_disk_read_bytes_total": ("counter", (), None),
    "prefix_cache_prompt_tokens_per_second": ("gauge", (), None),
    "prefix_cache_host_bytes_per_second": ("gauge", (), None),
    "prefix_cache_disk_bytes_per_second": ("gauge", (), None),
    "prefix_cache_fetches_declined_total": ("counter", (), None),
    "prefix_cache_tokens_declined_total": ("counter", (), None),
    "prefix_cache_disk_failures_total": ("counter", (), None),
    "kv_cache_bytes": ("gauge", ("part",), None),
    "kv_cache_tokens_capacity": ("gauge", (), None),
    "cache_config_info": ("gauge", ("block_size", "cache_dtype", "group_size", "num_blocks",
                                    "num_gpu_blocks",
                                    "prefill", "residual_length"), None),
    "build_info": ("gauge", ("version",), None),
    "prompt_tokens_total": ("counter", (), None),
    "generation_tokens_total": ("counter", (), None),
    "request_success_total": ("counter", ("finished_reason",), None),
    "num_preemptions_total": ("counter", (), None),
    "admission_rejections_total": ("counter", ("reason",), None),
    "broken_logits_total": ("counter", (), None),
    "forced_tokens_total": ("counter", (), None),
    "log_lines_dropped_total": ("counter", (), None),
    "requests_aborted_total": ("counter", ("reason",), None),
    "http_requests_total": ("counter", ("handler", "method", "status"), None),
    "grpc_server_handled_total": ("counter", ("grpc_code", "grpc_method"), None),
    "time_to_first_token_seconds": ("histogram", (), TTFT),
    "inter_token_latency_seconds": ("histogram", (), ITL),
    "e2e_request_latency_seconds": ("histogram", (), LATENCY),
    "request_queue_time_seconds": ("histogram", (), LATENCY),
    "request_prefill_time_seconds": ("histogram", (), LATENCY),
    "request_decode_time_seconds": ("histogram", (), LATENCY),
    "request_time_per_output_token_seconds": ("histogram", (), ITL),
    "request_max_num_generation_tokens": ("histogram", (), TOKENS),
    "request_prompt_tokens": ("histogram", (), TOKENS),
    "request_generation_tokens": ("histogram", (), TOKENS),
    "iteration_tokens_total": ("histogram", (), STEP),
}
PROCESS = {"process_cpu_seconds_total": "counter", "process_start_time_seconds": "gauge",
           "process_resident_memory_bytes": "gauge", "process_virtual_memory_bytes": "gauge",
           "process_open_fds": "gauge", "process_max_fds": "gauge"}
SAMPLE = re.compile(r'([\w:]+?)(?:\{(.*)\})? (\S+)$')


def parse(text):
    """({family: type}, {family: [(suffix, {label: value}, value)]}) of the text format."""
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    samples = {name: [] for name in types}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, labels, value = SAMPLE.match(line).groups()
        family = name if name in types else re.sub(r"_(bucket|sum|count)$", "", name)
        samples[family].append((name[len(family):], dict(re.findall(r'(\w+)="([^"]*)"', labels or "")),
                                float(value)))
    return types, samples


def grpc(server, *arguments):
    return subprocess.run(
        ["/usr/bin/python3", str(ROOT / "tests/e2e/grpc_client.py"), "--address",
         f"127.0.0.1:{server.grpc_port}", *arguments], check=True, capture_output=True, text=True,
        timeout=60).stdout


class Metrics(WithServer):
    def scrape(self):
        return parse(self.server.get("/metrics").body)

    def test_every_family_is_there_with_its_type_labels_and_buckets(self):
        self.server.stream(prompt=TEXT, max_tokens=4)
        grpc(self.server, "generate", "--max-tokens", "2")
        types, samples = self.scrape()
        self.assertEqual({n.removeprefix("kivi:"): t for n, t in types.items() if n.startswith("kivi:")},
                         {n: t for n, (t, _, _) in FAMILIES.items()})
        self.assertEqual({n: t for n, t in types.items() if not n.startswith("kivi:")}, PROCESS)
        for name, (kind, labels, buckets) in FAMILIES.items():
            with self.subTest(name):
                rows = samples["kivi:" + name]
                self.assertTrue(rows)
                for suffix, given, _ in rows:
                    self.assertEqual(sorted(given.keys() - {"le"}), sorted((*labels, "model_name")))
                    self.assertEqual(given["model_name"], "tales-llama")
                    self.assertEqual("le" in given, suffix == "_bucket")
                if kind == "histogram":
                    bounds = [g["le"] for suffix, g, _ in rows if suffix == "_bucket"]
                    self.assertEqual([float(b) for b in bounds], [*buckets, float("inf")])
        self.assertEqual({g["part"] for _, g, _ in samples["kivi:kv_cache_bytes"]},
                         {"codes", "scales", "residual", "sinks"})

    def test_rates_begin_at_zero_for_every_reason(self):
        _, samples = self.scrape()
        reasons = lambda family: {g["reason"] for _, g, _ in samples["kivi:" + family]}
        self.assertLessEqual({"queue_full", "draining", "loading", "context_length", "connections",
                              "body_bytes", "rate_limit"}, reasons("admission_rejections_total"))
        self.assertLessEqual({"client_disconnect", "deadline", "slow_reader", "shutdown", "api"},
                             reasons("requests_aborted_total"))

    def test_the_prefix_is_a_setting(self):
        server = Server("--metrics-prefix", "vllm")
        self.addCleanup(server.close)
        types, _ = parse(server.get("/metrics").body)
        self.assertIn("vllm:num_requests_running", types)
        self.assertFalse([name for name in types if name.startswith("kivi:")])

    def test_what_a_client_counts_is_what_the_server_counted(self):
        def now():
            _, samples = self.scrape()
            return lambda name, suffix="", **labels: sum(
                v for s, g, v in samples.get("kivi:" + name, [])
                if s == suffix and labels.items() <= g.items())

        self.assertTrue(self.server.wait_idle())
        before = now()
        prompt = completion = 0
        for i in range(4):
            usage = self.server.stream(prompt=TEXT * (i + 1), max_tokens=3 + i, ignore_eos=True,
                                       stream_options={"include_usage": True})[-1]["usage"]
            prompt, completion = prompt + usage["prompt_tokens"], completion + usage["completion_tokens"]
        usage = json.loads(grpc(self.server, "generate", "--max-tokens", "9", "--ignore-eos",
                                "--json").splitlines()[-1])["usage"]
        prompt, completion = prompt + usage["prompt_tokens"], completion + usage["completion_tokens"]
        self.assertEqual(self.server.complete(prompt="x " * 4000, max_tokens=1).status, 400)
        self.assertTrue(self.server.wait_idle())
        after = now()
        grown = lambda *name, **labels: after(*name, **labels) - before(*name, **labels)
        self.assertEqual(grown("prompt_tokens_total"), prompt)
        self.assertEqual(grown("generation_tokens_total"), completion)
        self.assertEqual(grown("request_prompt_tokens", "_sum"), prompt)
        self.assertEqual(grown("request_generation_tokens", "_sum"), completion)
        for histogram in ("request_prompt_tokens", "time_to_first_token_seconds",
                          "e2e_request_latency_seconds", "request_queue_time_seconds"):
            self.assertEqual(grown(histogram, "_count"), 5, histogram)
        self.assertEqual(grown("inter_token_latency_seconds", "_count"), completion - 5)
        self.assertEqual(grown("request_time_per_output_token_seconds", "_count"), 5)
        self.assertEqual(grown("request_max_num_generation_tokens", "_sum"), completion)
        self.assertEqual(grown("request_success_total", finished_reason="length"), 5)
        self.assertEqual(grown("admission_rejections_total", reason="context_length"), 1)
        self.assertEqual(grown("http_requests_total", handler="/v1/completions", status="200"), 4)
        self.assertEqual(grown("http_requests_total", handler="/v1/completions", status="400"), 1)
        self.assertEqual(grown("grpc_server_handled_total", grpc_code="OK"), 1)
        # Rows computed: every prompt token once, and every generated token but each request's last.
        self.assertEqual(grown("iteration_tokens_total", "_sum"), prompt + completion - 5)


if __name__ == "__main__":
    sys.exit(unittest.main())
