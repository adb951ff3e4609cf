#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The log: a reader that goes away or stalls, and peers that would write lines of their own.

    BINARY_UNDER_TEST=build/kivi tests/attack/logs_test.py [-k NAME]
"""

import fcntl
import http.client
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from harness import KIVI, MODEL, Server, environment  # noqa: E402
from ports import free_port  # noqa: E402

F_SETPIPE_SZ = 1031


class PipedServer(Server):
    """Writes its log into `log`, or into a pipe of 4 KiB that nobody reads until read_log()."""

    def __init__(self, *arguments, log=None):
        self.port, self.grpc_port = free_port(), free_port()
        if log is None:
            self.reader, writer = os.pipe()
            fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
        else:
            self.reader, writer = None, os.open(log, os.O_WRONLY)
        self.process = subprocess.Popen(
            [KIVI, "serve", MODEL, "--port", str(self.port), "--grpc-port", str(self.grpc_port),
             *arguments], stdin=subprocess.DEVNULL, stdout=writer, stderr=writer,
            env=environment())
        os.close(writer)
        deadline = time.monotonic() + 60
        while self.get("/health/ready").status != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("kivi serve did not become ready")
            time.sleep(0.05)

    def log_text(self):
        return "(in a pipe)"

    def close_reader(self):
        if self.reader is not None:
            os.close(self.reader)
        self.reader = None

    def close(self):
        super().close()
        self.close_reader()

    def read_log(self):
        """Reads on a thread from now on; the returned list grows, and join() waits for the end."""
        parts = []

        def read():
            while data := os.read(self.reader, 65536):
                parts.append(data)
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return parts, thread.join

    def many_log_lines(self, count):
        """`count` logged requests over one connection; the statuses of their replies."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        statuses = set()
        for _ in range(count):
            connection.request("GET", "/v1/models")
            reply = connection.getresponse()
            reply.read()
            statuses.add(reply.status)
        connection.close()
        return statuses


class Reader(unittest.TestCase):
    def serve(self, *arguments):
        server = PipedServer("--enable-log-requests", *arguments)
        self.addCleanup(server.close)
        return server

    def test_the_server_outlives_the_reader_of_its_log(self):
        server = self.serve()
        server.close_reader()
        self.assertEqual(server.many_log_lines(50), {200})
        self.assertEqual(server.complete(prompt="x", max_tokens=3).status, 200)
        self.assertIsNone(server.process.poll(), "SIGPIPE ended the server")
        self.assertGreater(server.metric("log_lines_dropped_total"), 0)
        server.terminate()
        self.assertEqual(server.process.wait(timeout=10), 0)

    def test_a_reader_that_stalls_stops_nothing_and_what_it_missed_is_counted_and_told(self):
        server = self.serve()
        begin = time.monotonic()
        self.assertEqual(server.many_log_lines(4000), {200})
        for path in ("/health", "/health/ready"):
            self.assertEqual(server.get(path).status, 200)
        self.assertEqual(server.complete(prompt="x", max_tokens=3).status, 200)
        self.assertLess(time.monotonic() - begin, 60)
        dropped = server.metric("log_lines_dropped_total")
        self.assertGreater(dropped, 0)
        log, _ = server.read_log()
        deadline = time.monotonic() + 20
        while not (told := re.findall(r"(\d+) log lines were dropped", b"".join(log).decode())):
            self.assertLess(time.monotonic(), deadline, "the drops are not told")
            server.many_log_lines(1)
            time.sleep(0.05)
        self.assertGreaterEqual(int(told[0]), dropped)

    def test_a_reader_that_stalls_does_not_hold_up_the_end(self):
        server = self.serve()
        self.assertEqual(server.many_log_lines(300), {200})
        server.terminate()
        self.assertEqual(server.process.wait(timeout=10), 0)

    def test_all_lines_are_there_when_the_reader_reads(self):
        server = self.serve()
        log, join = server.read_log()
        server.many_log_lines(500)
        self.assertEqual(server.metric("log_lines_dropped_total"), 0)
        server.terminate()
        self.assertEqual(server.process.wait(timeout=10), 0)
        join(10)
        text = b"".join(log).decode()
        self.assertGreaterEqual(text.count("/v1/models"), 500)
        self.assertRegex(text.splitlines()[-1], r"drained in")


class FullDisk(unittest.TestCase):
    def test_a_log_on_a_full_disk_costs_its_lines_and_nothing_else(self):
        server = PipedServer("--enable-log-requests", log="/dev/full")
        self.addCleanup(server.close)
        self.assertEqual(server.many_log_lines(50), {200})
        self.assertEqual(server.complete(prompt="x", max_tokens=3).status, 200)
        self.assertGreater(server.metric("log_lines_dropped_total"), 0)
        server.terminate()
        self.assertEqual(server.process.wait(timeout=10), 0)


def http2_frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(
        ">I", stream) + payload


def literal(name, value):
    """A header, neither indexed nor Huffman-coded (RFC 7541, section 6.2.2); lengths below 127."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def grpc_call(port, *headers, message=b"\x00\x00\x00\x00\x00", path=b"/kivi.v1.Kivi/Tokenize"):
    """One gRPC call on a plain socket, with any bytes in its headers."""
    block = b"".join(literal(n, v) for n, v in [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *headers])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
        # The reply to a ping tells that the frames before it have been read.
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b"") +
                  http2_frame(1, 4, 1, block) + http2_frame(0, 1, 1, message) +
                  http2_frame(6, 0, 0, b"the ping"))
        received = b""
        try:
            while b"the ping" not in received and (data := s.recv(65536)):
                received += data
        except OSError:
            pass


class Injection(unittest.TestCase):
    LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z] ")

    def attack(self, server):
        forged = b"x\n2026-01-01 00:00:00.000 E FORGED LINE\x1b[31m"
        for name in (b"grpc-timeout", b"x-bin", b"user-agent", b"x-request-id", b"traceparent"):
            grpc_call(server.grpc_port, (name, forged))
        grpc_call(server.grpc_port, path=b"/kivi.v1.Kivi/" + forged)
        # Not UTF-8, in a field that is text: Protobuf has a line about that.
        for method in (b"Generate", b"Tokenize", b"Abort"):
            message = b"\x0a\x04\xff\xfe\n\x1b"
            grpc_call(server.grpc_port, path=b"/kivi.v1.Kivi/" + method,
                      message=b"\x00" + struct.pack(">I", len(message)) + message)
        time.sleep(0.3)

    def test_a_peer_without_a_key_writes_no_line_of_its_own(self):
        server = Server("--enable-log-requests", "--api-key", "k", "--served-model-name",
                        "a\nFORGED\x1b[31m")
        self.addCleanup(server.close)
        self.attack(server)
        log = server.log_text()
        self.assertNotIn("\x1b", log)
        for line in log.splitlines():
            self.assertRegex(line, self.LINE)
            self.assertFalse(re.match(r"\S+ \S+ E FORGED", line), line)
        # The libraries had something to say, and it is in our format.
        self.assertRegex(log, r" [EI] (gRPC|Protobuf): ")

    def test_every_line_of_a_json_log_is_json(self):
        server = Server("--enable-log-requests", "--log-format", "json")
        self.addCleanup(server.close)
        self.attack(server)
        for line in server.log_text().splitlines():
            self.assertEqual(set(json.loads(line)), {"time", "level", "thread", "message"})

    def test_lines_that_peers_cause_are_limited(self):
        server = Server()
        self.addCleanup(server.close)
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=5) as s:
            frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b"")
            for i in range(400):
                block = b"".join(literal(n, v) for n, v in [
                    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x/y"),
                    (b":authority", b"x"), (b"content-type", b"application/grpc"),
                    (b"te", b"trailers"), (b"grpc-timeout", b"x\x1b")])
                frames += http2_frame(1, 5, 2 * i + 1, block)
            s.sendall(frames)
            time.sleep(1)
        seconds = time.monotonic() - begin
        lines = server.log_text().count("gRPC: ")
        self.assertGreater(lines, 0)
        self.assertLessEqual(lines, 10 * (int(seconds) + 2))


if __name__ == "__main__":
    unittest.main()
