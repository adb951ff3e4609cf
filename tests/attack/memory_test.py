#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Requests that are made to take memory.

    BINARY_UNDER_TEST=build/kivi tests/attack/memory_test.py [-k NAME]
"""

import json
import resource
import threading
import time
import unittest

import attack_harness as attack
import h2
from attack import connect, cpu_seconds, memory_mb, post, read_reply, send_raw, slow
from harness import Server, WithServer

LONG = "a" * 15_000_000


def error_of(reply):
    return json.loads(reply[2])["error"]


class Memory(WithServer):
    arguments = ("--header-timeout", "60")

    def test_a_text_over_the_limit_is_not_tokenized(self):
        for path, body in (
                ("/tokenize", {"prompt": LONG}),
                ("/v1/completions", {"prompt": LONG, "truncate_prompt_tokens": 5})):
            with self.subTest(path):
                before = memory_mb(self.server)
                reply = send_raw(self.server, post(path, json.dumps(body)))
                self.assertEqual(reply[0], 400)
                self.assertEqual(error_of(reply)["param"], "prompt")
                self.assertIn("--max-tokenize-bytes", error_of(reply)["message"])
                self.assertLess(memory_mb(self.server, "VmHWM") - before, 200)

    def test_the_longest_text_is_given_back(self):
        for _ in range(2):
            reply = send_raw(self.server, post("/tokenize", json.dumps({"prompt": "a" * 1_000_000})))
            self.assertEqual(reply[0], 200)
        print(f"1 MB tokenized: peak {memory_mb(self.server, 'VmHWM'):.0f} MB, "
              f"kept {memory_mb(self.server):.0f} MB")
        self.assertLess(memory_mb(self.server, "VmHWM"), 500)
        self.assertLess(memory_mb(self.server), 250)

    def test_choices_that_can_never_fit_are_refused_before_they_are_made(self):
        for prompts, field, more in ((2048, "n", {"n": 128}), (9, "n", {"n": 128}),
                                     (9, "best_of", {"best_of": 128}), (2048, "prompt", {})):
            body = {"prompt": [[5]] * prompts, "max_tokens": 1, **more}
            before, cpu = memory_mb(self.server), cpu_seconds(self.server)
            reply = send_raw(self.server, post("/v1/completions", json.dumps(body)))
            self.assertEqual(reply[0], 400)
            self.assertEqual(error_of(reply)["param"], field)
            self.assertNotIn(b"Retry-After", reply[1])
            self.assertLess(memory_mb(self.server) - before, 20)
            self.assertLess(cpu_seconds(self.server) - cpu, 0.15)

    def test_the_largest_request_that_fits_is_answered(self):
        reply = self.server.complete(prompt=[[5]] * 8, n=128, max_tokens=1)
        self.assertEqual(reply.status, 200, reply.body[:200])
        self.assertEqual(len(reply.json()["choices"]), 1024)

    def test_a_reply_that_could_be_too_large_is_refused(self):
        body = {"prompt": [[5] * 1000] * 256, "max_tokens": 1, "echo": True, "logprobs": 20}
        begin = time.monotonic()
        reply = send_raw(self.server, post("/v1/completions", json.dumps(body)))
        self.assertEqual(reply[0], 400)
        self.assertEqual(error_of(reply)["param"], "logprobs")
        self.assertLess(time.monotonic() - begin, 10)

    def test_the_names_of_unknown_fields_are_not_kept_whole(self):
        before = memory_mb(self.server)
        for i in range(12):
            body = json.dumps({"prompt": "a", "max_tokens": 1, f"{i}{LONG}": 1})
            self.assertEqual(send_raw(self.server, post("/v1/completions", body))[0], 200)
        self.assertLess(memory_mb(self.server) - before, 90)


class Budget(WithServer):
    arguments = ("--max-body-bytes-in-flight", "1000000", "--header-timeout", "30")

    def test_bodies_over_the_budget_are_refused_before_they_are_read(self):
        holder = connect(self.server)
        holder.sendall(post("/v1/completions", b"x" * 900_000)[:-1])  # one byte is missing
        time.sleep(0.5)
        head = post("/v1/completions", b"x" * 200_000)[:-200_000]
        status, lines, body = send_raw(self.server, head)
        self.assertEqual(status, 503)
        self.assertIn(b"Retry-After", lines)
        self.assertEqual(json.loads(body)["error"]["code"], "too_many_body_bytes")
        # Messages of gRPC take from the same budget.
        self.assertEqual(self.tokenize("x" * 200_000), "RESOURCE_EXHAUSTED")
        self.assertEqual(self.tokenize("x" * 20_000), "OK")
        # Small ones still fit, and a chunked body is judged as it grows.
        self.assertEqual(self.server.complete(prompt="a", max_tokens=1).status, 200)
        with connect(self.server) as chunked:
            chunked.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                            + b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            for _ in range(20):
                try:
                    chunked.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
                except OSError:
                    break
            self.assertEqual(read_reply(chunked)[0], 503)
        holder.close()
        time.sleep(0.5)
        self.assertEqual(send_raw(self.server, post("/v1/completions", b"x" * 200_000))[0], 400)
        self.assertEqual(self.tokenize("x" * 200_000), "OK")

    def test_who_only_announces_a_body_takes_nothing(self):
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
        announced = [connect(self.server) for _ in range(8)]
        for i, connection in enumerate(announced):
            connection.sendall(head if i % 2 == 0 else
                               post("/v1/completions", b"x" * 900_000)[:-900_000])
        time.sleep(0.5)
        self.assertEqual(send_raw(self.server, post("/v1/completions", b"x" * 200_000))[0], 400)
        self.assertEqual(self.tokenize("x" * 200_000), "OK")
        # A GET is answered, whatever it announces.
        self.assertEqual(read_reply(announced[0])[0], 200)
        for connection in announced:
            connection.close()

    def test_a_reply_that_nobody_reads_holds_no_message(self):
        request = attack.stubs().kivi.GenerateRequest(text="a tale", max_tokens=1)
        message = request.SerializeToString() + b"\xba\x3e\xe0\xa7\x12" + b"x" * 300_000  # field 999
        with h2.FlowingConnection(self.server.grpc_port, window=0) as connection:
            for _ in range(12):
                connection.data(connection.open(attack.COMPLETE), h2.message(message))
                time.sleep(0.2)
            self.assertEqual(self.tokenize("x" * 300_000), "OK")
            self.assertTrue(connection.is_open(0.1))

    def tokenize(self, text):
        """The status code of a gRPC call with a message of that size."""
        request = attack.stubs().kivi.TokenizeRequest(text=text)
        with attack.grpc.insecure_channel(f"127.0.0.1:{self.server.grpc_port}") as channel:
            try:
                attack.stubs().kivi_grpc.KiviStub(channel).Tokenize(request, timeout=20)
            except attack.grpc.RpcError as error:
                return error.code().name
        return "OK"


class OutOfMemory(unittest.TestCase):
    def test_the_process_survives_when_memory_runs_out(self):
        server = Server("--kv-cache-memory-bytes", "67108864", "--header-timeout", "60",
                        "--max-body-bytes-in-flight", "1073741824")
        try:
            size = memory_mb(server, "VmSize") * 1000 * 1000
            limit = int(size) + 150_000_000
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, limit))
            body = post("/v1/completions", '{"prompt":"a","x":[' + ",".join(["[1,2]"] * 130_000)
                        + "," + ",".join(["123"] * 3_500_000) + "]}")
            statuses = []

            def one():
                try:
                    statuses.append(send_raw(server, body)[0])
                except OSError:
                    statuses.append(0)

            threads = [threading.Thread(target=one) for _ in range(8)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            print(f"replies without memory: {sorted(statuses)}")
            self.assertIsNone(server.process.poll(), server.log_text()[-2000:])
            self.assertEqual(server.complete(prompt="a", max_tokens=1).status, 200)
            self.assertTrue(set(statuses) - {200}, "memory was enough: the test shows nothing")
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main()
