#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""HTTP that is wrong, ambiguous or made for a browser's user, on raw sockets.

    BINARY_UNDER_TEST=build/kivi tests/attack/http_port_test.py [-k NAME]
"""

import json
import socket
import time
import unittest

from attack import connect, post, read_all, read_reply, reset, send_raw
from harness import WithServer

SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b'{"prompt":"a","max_tokens":1}'


def request(*lines, body=b"", first="POST /v1/completions HTTP/1.1"):
    head = [first, "Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def code_of(body):
    return json.loads(body)["error"]["code"]


class Conformance(WithServer):
    def only_reply(self, sent):
        """The status of the one reply that these bytes get before the server closes."""
        with connect(self.server) as connection:
            connection.sendall(sent)
            received = read_all(connection)
        self.assertEqual(received.count(b"HTTP/1.1 "), 1, received[:500])
        self.assertIn(b"Connection: close", received)
        return int(received.split(b" ")[1])

    def test_a_body_is_never_read_as_a_request(self):
        for coding, status in (("xchunked", 400), ("identity", 400), ("chunked, identity", 400),
                               ("gzip, chunked", 501), ("chunked, chunked", 400), ("", 400),
                               ("\x0bchunked", 400), ("chunked;q=1", 400)):
            with self.subTest(coding):
                self.assertEqual(
                    self.only_reply(request(f"Transfer-Encoding: {coding}", body=SMUGGLED)), status)
        self.assertEqual(self.only_reply(request("Transfer-Encoding: chunked",
                                                 "Transfer-Encoding: identity", body=SMUGGLED)), 400)
        self.assertEqual(self.only_reply(request(
            "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED,
            first="POST /v1/completions HTTP/1.0")), 400)
        self.assertEqual(self.only_reply(request("Transfer-Encoding: chunked", "Content-Length: 5",
                                                 body=b"0\r\n\r\n" + SMUGGLED)), 400)

    def test_folded_lines_are_refused(self):
        for lines in ("Content-Length:\r\n 29", "X-A: b\r\n\tc", "X-A: b\r\n "):
            self.assertEqual(self.only_reply(request(lines, body=BODY)), 400)
        self.assertEqual(self.only_reply(b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n"), 400)

    def test_lines_without_carriage_return_are_refused_at_once(self):
        self.assertEqual(self.only_reply(b"GET /health HTTP/1.1\nHost: localhost\n\n"), 400)
        self.assertEqual(self.only_reply(b"\x16\x03\x01\x02\x00\x01\x00"), 400)

    def test_chunk_sizes_are_hexadecimal_digits(self):
        for size in (b"0x10", b"", b"+5", b"-1", b"5 5", b"g", b"1" * 17, b"fffffffffffffff"):
            with self.subTest(size):
                begin = time.monotonic()
                status = self.only_reply(request("Transfer-Encoding: chunked", body=size + b"\r\n"))
                self.assertIn(status, (400, 413))
                self.assertLess(time.monotonic() - begin, 5)  # it does not wait for more

    def test_chunked_bodies_with_extensions_and_trailers_are_read(self):
        body = b"1d;a=b\r\n" + BODY + b"\r\n0\r\nX-Trailer: a\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with connect(self.server) as connection:
            connection.sendall(request("Transfer-Encoding: Chunked", body=body + last))
            self.assertEqual(read_all(connection).count(b"HTTP/1.1 200 OK"), 2)

    def test_host_must_stand_once(self):
        self.assertEqual(self.only_reply(b"GET /health HTTP/1.1\r\n\r\n"), 400)
        self.assertEqual(self.only_reply(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"), 400)
        self.assertEqual(send_raw(self.server, b"GET /health HTTP/1.0\r\n\r\n")[0], 200)

    def test_an_absolute_target_is_its_path(self):
        for target in ("http://localhost/health", "HTTP://LOCALHOST:8000/health?x=1"):
            self.assertEqual(send_raw(
                self.server, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[0], 200)

    def test_an_unknown_expectation_is_417(self):
        self.assertEqual(self.only_reply(request("Expect: 200-maybe", "Content-Length: 29",
                                                 body=BODY)), 417)

    def test_a_blank_line_before_a_request_is_skipped(self):
        with connect(self.server) as connection:
            for _ in range(2):
                connection.sendall(b"\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertEqual(read_reply(connection)[0], 200)

    def test_a_half_closed_client_gets_its_reply(self):
        for body in ('{"prompt":"a","max_tokens":60,"ignore_eos":true}',
                     '{"prompt":"a","max_tokens":60,"ignore_eos":true,"stream":true}'):
            with connect(self.server) as connection:
                connection.sendall(post("/v1/completions", body))
                connection.shutdown(socket.SHUT_WR)
                received = read_all(connection)
                self.assertIn(b"HTTP/1.1 200 OK", received)
                self.assertTrue(b"[DONE]" in received or b'"length"' in received, received[-200:])

    def test_a_disconnect_is_seen_behind_pipelined_bytes(self):
        body = json.dumps({"prompt": "a", "n": 20, "max_tokens": 1900, "ignore_eos": True})
        for close in (reset, lambda connection: connection.close()):
            before = self.server.metric("generation_tokens_total")
            connection = connect(self.server)
            connection.sendall(post("/v1/completions", body))
            time.sleep(0.5)
            connection.setblocking(False)
            try:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3000)
            except BlockingIOError:
                pass
            time.sleep(0.5)
            close(connection)
            self.assertTrue(self.server.wait_idle(5))
            print(f"{self.server.metric('generation_tokens_total') - before:.0f} tokens were made")


class Browsers(WithServer):
    def status(self, *headers, host="localhost"):
        return send_raw(self.server, post("/v1/completions", BODY, *headers, host=host))[0]

    def test_a_foreign_page_is_refused(self):
        evil = "Origin: http://evil.example"
        self.assertEqual(self.status(evil), 403)
        self.assertEqual(self.status(evil, "Sec-Fetch-Site: cross-site"), 403)
        self.assertEqual(self.status("Sec-Fetch-Site: cross-site"), 403)
        self.assertEqual(self.status("Origin: null"), 403)
        self.assertEqual(self.status("Origin: http://localhost:3000"), 403)
        self.assertEqual(self.status("Origin: http://localhost"), 200)
        self.assertEqual(self.status("Sec-Fetch-Site: same-origin"), 200)
        self.assertEqual(self.status(), 200)

    def test_a_body_without_a_type_is_refused(self):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}"
        self.assertEqual(send_raw(self.server, head.encode() + b"\r\n\r\n" + BODY)[0], 415)
        self.assertEqual(send_raw(self.server, head.encode() + b"\r\nContent-Type: text/plain"
                                  b"\r\n\r\n" + BODY)[0], 415)

    def test_a_foreign_host_name_is_refused(self):
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io"):
            self.assertEqual(self.status(host=host), 403, host)
        for host in ("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000",
                     "a.localhost"):
            self.assertEqual(self.status(host=host), 200, host)
        self.assertEqual(send_raw(self.server, b"GET http://evil.example/health HTTP/1.1\r\n"
                                  b"Host: localhost\r\n\r\n")[0], 403)


class Allowed(WithServer):
    arguments = ("--allowed-hosts", "kivi.example", "--allowed-origins", "https://app.example")

    def test_named_hosts_and_origins_are_served(self):
        for headers, host, status in (
                (("Origin: https://app.example",), "kivi.example", 200),
                (("Origin: https://app.example", "Sec-Fetch-Site: cross-site"), "localhost", 200),
                (("Origin: https://other.example",), "kivi.example", 403), ((), "x.example", 403)):
            self.assertEqual(send_raw(self.server, post("/v1/completions", BODY, *headers,
                                                        host=host))[0], status)


class WithKey(WithServer):
    arguments = ("--api-key", "k")

    def test_with_a_key_a_page_of_any_origin_needs_it(self):
        self.assertEqual(send_raw(self.server, post(
            "/v1/completions", BODY, "Origin: http://evil.example"))[0], 401)
        self.assertEqual(send_raw(self.server, post(
            "/v1/completions", BODY, "Origin: http://a.example", "Authorization: Bearer k"))[0], 200)


class Connections(WithServer):
    arguments = ("--max-connections", "40")  # at most half of them from one address

    def test_idle_connections_make_room(self):
        idle = [connect(self.server) for _ in range(20)]
        time.sleep(1.5)  # a younger connection keeps its place
        self.assertEqual(self.server.complete(prompt="a", max_tokens=1).status, 200)
        closed = 0
        for connection in idle:
            connection.settimeout(0.05)
            try:
                closed += connection.recv(1) == b""
            except TimeoutError:
                pass
            connection.close()
        self.assertTrue(1 <= closed <= 4, closed)

    def test_open_paths_have_a_reserve(self):
        busy = []
        for _ in range(20):
            busy.append(connect(self.server))
            busy[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        time.sleep(1.5)
        for path in ("/health", "/health/ready", "/metrics"):
            self.assertEqual(self.server.get(path).status, 200, path)
        reply = self.server.complete(prompt="a", max_tokens=1)
        self.assertEqual(reply.status, 503)
        self.assertEqual(reply.json()["error"]["code"], "too_many_connections")
        silent = connect(self.server)
        self.assertEqual(read_reply(silent)[0], 503)
        for connection in [*busy, silent]:
            connection.close()


if __name__ == "__main__":
    unittest.main()
