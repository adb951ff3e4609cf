#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The system's clock jumps by an hour while requests run. libfaketime moves the server's
CLOCK_REALTIME; its CLOCK_MONOTONIC goes on as it is, as in a real jump.

    BINARY_UNDER_TEST=build/kivi tests/attack/clock_test.py [-k NAME]
"""

import pathlib
import ssl
import socket
import tempfile
import time
import unittest

import attack_harness as attack
import h2
import tls_test
from attack import connect, read_all
from harness import RawStream, Server

HOUR = 3600


class Clock:
    """The server's clock: it differs from ours by jump()'s seconds, from now on."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.file = pathlib.Path(self.folder.name) / "offset"
        self.jump(0)
        found = list(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        if not found:
            raise RuntimeError("libfaketime is missing (scripts/setup test)")
        self.variables = {"LD_PRELOAD": str(found[0]), "FAKETIME_TIMESTAMP_FILE": str(self.file),
                          "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def jump(self, seconds):
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.rename(self.file)


class ClockJumps(unittest.TestCase):
    def serve(self, *arguments):
        self.clock = Clock()
        self.addCleanup(self.clock.folder.cleanup)
        server = Server(*arguments, **self.clock.variables)
        self.addCleanup(server.close)
        return server

    def jump(self, server, seconds):
        """Jumps, and sees that the server's clock has."""
        self.clock.jump(seconds)
        created = server.complete(prompt="a", max_tokens=1).json()["created"]
        self.assertAlmostEqual(created - time.time(), seconds, delta=30)

    def took(self, action):
        begin = time.monotonic()
        return action(), time.monotonic() - begin

    def test_requests_and_timeouts_go_on(self):
        server = self.serve("--header-timeout", "1")
        request = attack.stubs().kivi.GenerateRequest(text="a tale", n=8, max_tokens=1900,
                                                      ignore_eos=True)
        for seconds in (HOUR, -HOUR):
            with self.subTest(seconds=seconds), h2.Connection(server.grpc_port) as connection:
                stream = RawStream(server.port, prompt="a", n=2, max_tokens=600, ignore_eos=True)
                self.assertTrue(stream.read_until(b"data: "))
                call = connection.open(attack.COMPLETE, ("grpc-timeout", "1500m"))
                connection.data(call, h2.message(request.SerializeToString()))
                self.addCleanup(stream.close)
                half = connect(server)
                self.addCleanup(half.close)
                half.sendall(b"GET /health HTT")
                begin = time.monotonic()
                self.jump(server, seconds)
                # What began before the jump ends when it would have ended without it.
                received = read_all(half)
                self.assertIn(b"408", received[:20])
                self.assertAlmostEqual(time.monotonic() - begin, 1, delta=0.9)
                self.assertEqual(connection.end_of(call, 10), b"")
                self.assertAlmostEqual(time.monotonic() - begin, 1.5, delta=1)
                self.assertTrue(stream.read_all().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"))
                self.assertEqual(attack.grpc_code(server), "OK")
                self.assertEqual(server.get("/health/ready").status, 200)
                self.assertTrue(server.wait_idle())
        self.clock.jump(0)
        server.terminate()
        self.clock.jump(-HOUR)
        self.assertEqual(server.process.wait(timeout=10), 0)

    def test_limits_per_minute_are_neither_lifted_nor_prolonged(self):
        server = self.serve("--limit-requests-per-minute", "30")
        ask = lambda: server.complete(prompt="a", max_tokens=1)  # noqa: E731
        while (reply := ask()).status == 200:
            pass
        for seconds in (HOUR, -HOUR):
            self.clock.jump(seconds)
            reply = ask()
            self.assertEqual(reply.status, 429)
            wait = int(reply.headers["retry-after"])
            self.assertTrue(1 <= wait <= 60, wait)
        time.sleep(wait)
        self.assertEqual(ask().status, 200)

    def test_tls_connections_go_on(self):
        certificates = tls_test.Certificates()
        self.addCleanup(certificates.folder.cleanup)
        certificates.use("server")
        self.clock = Clock()
        self.addCleanup(self.clock.folder.cleanup)
        server = tls_test.TlsServer(certificates, **self.clock.variables)
        self.addCleanup(server.close)
        context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain, \
                context.wrap_socket(plain, server_hostname="localhost") as kept:
            for seconds in (0, HOUR, -HOUR):
                self.clock.jump(seconds)
                kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertIn(b"200 OK", kept.recv(65536))
                self.assertEqual(server.get("/health").status, 200)  # a new handshake


if __name__ == "__main__":
    unittest.main()
