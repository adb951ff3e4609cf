#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Bodies that are made to be slow to parse.

    BINARY_UNDER_TEST=build/kivi tests/attack/json_test.py [-k NAME]
"""

import threading
import time
import unittest

from attack import connect, cpu_seconds, post, read_reply, reset, send_raw, slow
from harness import Server, WithServer

MIB16 = (16 << 20) - 1024

# What is repeated inside a list of an unknown field, by name.
SHAPES = {
    "objects": "{}", "lists": "[]", "members": '{"a":1}', "digits": "1", "numbers": "-1.25e-3",
    "strings": '""', "escapes": '"\\u00e9\\n"', "literals": "null", "nested": "[[[[[[[[]]]]]]]]",
}


def body_of(piece, size):
    count = (size - 40) // (len(piece) + 1)
    return '{"prompt":"a","max_tokens":1,"x":[' + ",".join([piece] * count) + "]}"


class Json(WithServer):
    arguments = ("--header-timeout", "60")

    def cpu_of(self, body):
        before = cpu_seconds(self.server)
        status, _, reply = send_raw(self.server, post("/v1/completions", body))
        self.assertIn(status, (200, 400), reply[:200])
        return cpu_seconds(self.server) - before

    def test_400k_objects_cost_less_than_a_second(self):
        self.assertLess(self.cpu_of(body_of("{}", 1_200_000)), 1)

    def test_every_shape_of_16_mb_costs_less_than_a_second(self):
        for name, piece in SHAPES.items():
            with self.subTest(name):
                cpu = self.cpu_of(body_of(piece, MIB16))
                print(f"{name}: {cpu:.2f} s of CPU")
                self.assertLess(cpu, 1)

    def test_one_object_of_many_members_is_bounded(self):
        body = '{"prompt":"a","x":{' + ",".join(f'"{i}":0' for i in range(1_300_000)) + "}}"
        self.assertLess(self.cpu_of(body), 1)

    def test_a_chat_of_many_members_is_bounded(self):
        members = "{" + ",".join(f'"{i}":0' for i in range(1000)) + "}"
        body = '{"messages":[{"role":"user","content":"a"}],"x":[' + ",".join([members] * 1800) + "]}"
        before = cpu_seconds(self.server)
        send_raw(self.server, post("/v1/chat/completions", body))
        self.assertLess(cpu_seconds(self.server) - before, 1)

    def test_long_bodies_are_parsed_beside_each_other(self):
        # Several bodies at once, and one of a patient user: none waits for minutes.
        body = post("/v1/completions", body_of("{}", 1_200_000))
        threads = [threading.Thread(target=send_raw, args=(self.server, body)) for _ in range(6)]
        for t in threads:
            t.start()
        begin = time.monotonic()
        status, _, _ = send_raw(self.server, post("/v1/completions",
                                                  body_of("1", 100_000)))
        self.assertEqual(status, 200)
        self.assertLess(time.monotonic() - begin, 10)
        for t in threads:
            t.join()

    def test_an_abandoned_body_leaves_the_server_free(self):
        for _ in range(4):
            connection = connect(self.server)
            connection.sendall(post("/v1/completions", body_of("1", MIB16 // 2)))
            reset(connection)
        begin = time.monotonic()
        self.assertEqual(self.server.get("/health").status, 200)
        self.assertEqual(self.server.complete(prompt="a", max_tokens=1).status, 200)
        self.assertLess(time.monotonic() - begin, 10)


class Drain(unittest.TestCase):
    def test_a_drain_does_not_wait_for_a_parser(self):
        server = Server("--shutdown-timeout", "2")
        try:
            connections = [connect(server) for _ in range(4)]
            for connection in connections:
                connection.sendall(post("/v1/completions", body_of("{}", 1_200_000)))
            begin = time.monotonic()
            server.terminate()
            self.assertEqual(server.process.wait(timeout=30), 0)
            # shutdown_timeout, and the time that replies have to reach their clients.
            self.assertLess(time.monotonic() - begin, 10)
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main()
