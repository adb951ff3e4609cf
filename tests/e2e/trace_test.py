#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Access lines and spans: what the log and a collector get to know of a request.

    BINARY_UNDER_TEST=build/kivi tests/e2e/trace_test.py [-k NAME]
"""

import http.server
import json
import re
import threading
import time
import unittest

from grpc_test import call
from harness import TEXT, Server
from ports import free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP's JSON and keeps the spans."""

    def __init__(self):
        self.spans, self.bodies, self.status = [], [], 200
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                collector.bodies.append((self.path, self.headers["Content-Type"], body))
                for resource in body["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        collector.spans += scope["spans"]
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def wait(self, count, seconds=10):
        end = time.monotonic() + seconds
        while len(self.spans) < count and time.monotonic() < end:
            time.sleep(0.02)
        return list(self.spans)


def attributes(span):
    """The attributes of a span as Python values."""
    def plain(value):
        (kind, content), = value.items()
        if kind == "arrayValue":
            return [plain(v) for v in content["values"]]
        return int(content) if kind == "intValue" else content
    return {a["key"]: plain(a["value"]) for a in span["attributes"]}


def wait_log(server, text):
    """What `server` has logged, once `text` is in it or 10 s are over."""
    end = time.monotonic() + 10
    while text not in server.log_text() and time.monotonic() < end:
        time.sleep(0.05)
    return server.log_text()


class Spans(unittest.TestCase):
    def setUp(self):
        self.collector = Collector()
        self.addCleanup(self.collector.server_close)
        self.addCleanup(self.collector.shutdown)
        self.server = Server("--otlp-traces-endpoint", f"http://127.0.0.1:{self.collector.server_port}")
        self.addCleanup(self.server.close)

    def test_a_request_is_one_span_with_what_was_asked_and_computed(self):
        reply = self.server.post("/v1/completions", {"prompt": TEXT, "max_tokens": 7, "temperature": 0.5, "seed": 1},
                                 "-H", f"traceparent: 00-{TRACE}-{PARENT}-01", "-H", "X-Request-Id: r7")
        self.assertEqual(reply.status, 200)
        span, = self.collector.wait(1)
        self.assertEqual((span["traceId"], span["parentSpanId"], span["kind"]), (TRACE, PARENT, 2))
        self.assertEqual(span["name"], "text_completion tales-llama")
        self.assertEqual(reply.headers["traceparent"], f"00-{TRACE}-{span['spanId']}-01")
        took = int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])
        self.assertTrue(0 < took < 60e9)
        self.assertLess(abs(int(span["endTimeUnixNano"]) / 1e9 - time.time()), 60)
        usage, seen = reply.json()["usage"], attributes(span)
        self.assertEqual(seen["gen_ai.usage.input_tokens"], usage["prompt_tokens"])
        self.assertEqual(seen["gen_ai.usage.output_tokens"], 7)
        self.assertEqual(seen["gen_ai.response.finish_reasons"], ["length"])
        self.assertEqual(seen["gen_ai.response.id"], "cmpl-r7")
        self.assertEqual((seen["gen_ai.operation.name"], seen["gen_ai.request.model"]),
                         ("text_completion", "tales-llama"))
        self.assertEqual((seen["gen_ai.request.max_tokens"], seen["gen_ai.request.temperature"]), (7, 0.5))
        self.assertTrue(0 < seen["gen_ai.latency.time_to_first_token"] <= seen["gen_ai.latency.e2e"])
        self.assertGreaterEqual(seen["gen_ai.latency.time_in_queue"], 0)
        self.assertNotIn("king", json.dumps(self.collector.bodies))
        path, kind, _ = self.collector.bodies[0]
        self.assertEqual((path, kind), ("/v1/traces", "application/json"))

    def test_streams_and_grpc_are_spans_too_and_refused_requests_are_none(self):
        self.server.stream(prompt=TEXT, max_tokens=3)
        self.assertEqual(self.server.complete(prompt=TEXT, n=0).status, 400)
        code, _, err = call(self.server, "generate", "--prompt", TEXT, "--max-tokens", "4")
        self.assertEqual(code, 0, err)
        spans = self.collector.wait(2)
        time.sleep(0.5)
        self.assertEqual(len(self.collector.spans), 2)
        self.assertEqual([attributes(s)["gen_ai.usage.output_tokens"] for s in spans], [3, 4])
        self.assertEqual([attributes(s)["url.path"] for s in spans], ["/v1/completions", "/kivi.v1.Kivi/Generate"])
        self.assertNotEqual(spans[0]["traceId"], spans[1]["traceId"])
        self.assertNotIn("parentSpanId", spans[0])

    def test_a_trace_that_is_not_sampled_is_not_sent(self):
        for flags in ("00", "01"):
            self.server.post("/v1/completions", {"prompt": TEXT, "max_tokens": 1},
                             "-H", f"traceparent: 00-{TRACE}-{PARENT}-{flags}")
        self.collector.wait(1)
        time.sleep(0.4)
        self.assertEqual(len(self.collector.spans), 1)

    def test_the_last_spans_arrive_before_the_end(self):
        self.server.complete(prompt=TEXT, max_tokens=1)
        self.server.terminate()
        self.server.process.wait(20)
        self.assertEqual(len(self.collector.wait(1, 0)), 1)

    def test_a_collector_that_refuses_costs_spans_and_is_tried_again(self):
        self.collector.status = 500
        self.server.complete(prompt=TEXT, max_tokens=1)
        self.collector.wait(1)
        end = time.monotonic() + 10
        while self.server.metric("trace_spans_dropped_total") < 1 and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual(self.server.metric("trace_spans_dropped_total"), 1)
        self.collector.status = 200
        self.server.complete(prompt=TEXT, max_tokens=2)
        self.assertEqual(len(self.collector.wait(2)), 2)
        self.assertIn("takes spans again", wait_log(self.server, "takes spans again"))


class DeadCollector(unittest.TestCase):
    def test_a_dead_collector_delays_nothing(self):
        server = Server("--otlp-traces-endpoint", f"http://127.0.0.1:{free_port()}/v1/traces")
        self.addCleanup(server.close)
        for _ in range(20):
            self.assertEqual(server.complete(prompt=TEXT, max_tokens=1).status, 200)
        self.assertEqual(wait_log(server, "spans are dropped").count("spans are dropped"), 1)
        begin = time.monotonic()
        server.terminate()
        server.process.wait(20)
        self.assertLess(time.monotonic() - begin, 8)

    def test_an_address_that_is_none_is_refused_at_the_start(self):
        for url in ("https://x/v1/traces", "localhost:4318", "http://", "http://a:b", "http://a b"):
            with self.assertRaisesRegex(RuntimeError, "otlp_traces_endpoint"):
                Server("--otlp-traces-endpoint", url)


class AccessLine(unittest.TestCase):
    def test_a_line_says_all_but_the_text(self):
        server = Server("--enable-log-requests", "--api-key", "secret-key")
        self.addCleanup(server.close)
        key = ("-H", "Authorization: Bearer secret-key")
        self.assertEqual(server.post("/v1/completions", {
            "prompt": TEXT, "max_tokens": 5, "n": 2, "stream": True, "ignore_eos": True}, *key, "-H", "X-Request-Id: r1",
            "-H", f"traceparent: 00-{TRACE}-{PARENT}-01").status, 200)
        self.assertEqual(server.post("/v1/completions", {"prompt": TEXT}).status, 401)
        server.get("/health", "-H", "X-Request-Id: r2")
        log = server.log_text()
        line = next(line for line in log.splitlines() if "request_id=r1" in line)
        self.assertRegex(line, r"HTTP POST /v1/completions 200 \d+ ms request_id=r1 key=key:[0-9a-f]{16} "
                               r"prompt_tokens=\d+ cached_tokens=\d+ completion_tokens=10 queue_ms=[\d.]+ "
                               rf"ttft_ms=[\d.]+ tpot_ms=[\d.]+ finish=length,length trace_id={TRACE}$")
        self.assertRegex(log, r"HTTP POST /v1/completions 401 \d+ ms request_id=\S+ key=address:127.0.0.1\n")
        self.assertRegex(log, r"HTTP GET /health 200 \d+ ms request_id=r2 ")
        for secret in ("secret-key", "king"):
            self.assertNotIn(secret, log)
        code, _, err = call(server, "generate", "--prompt", TEXT, "--max-tokens", "4",
                            globals_=("--key", "secret-key"))
        self.assertEqual(code, 0, err)
        line = next(line for line in server.log_text().splitlines() if "gRPC /kivi.v1.Kivi/Generate OK" in line)
        self.assertRegex(line, r"key=key:[0-9a-f]{16} prompt_tokens=\d+ .* completion_tokens=4 .* finish=length$")


if __name__ == "__main__":
    unittest.main(verbosity=2)
