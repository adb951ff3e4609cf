# SPDX-License-Identifier: Apache-2.0
"""TLS on both ports: what is taken and what is not, and certificates that change while it serves."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

import attack as attack_http
import attack_harness as attack
import grpc
from attack_harness import harness


def openssl(*arguments, **options):
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, errors="replace", timeout=30,
                          **options)


class Certificates:
    """An authority, and what it has signed, in a folder that goes with the object."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="kivi-tls-")
        self.make("ca", "-x509", "-addext", "basicConstraints=critical,CA:TRUE")
        for name in ("server", "renewed", "client"):
            self.sign(name)

    def path(self, name):
        return str(pathlib.Path(self.folder.name, name))

    def make(self, name, *more):
        made = openssl("req", *more, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                       "-nodes", "-keyout", self.path(f"{name}.key"), "-subj", f"/CN=kivi {name}",
                       "-out", self.path(f"{name}.pem" if "-x509" in more else f"{name}.csr"))
        assert made.returncode == 0, made.stderr

    def sign(self, name):
        self.make(name)
        names = pathlib.Path(self.path("names"))
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signed = openssl("x509", "-req", "-in", self.path(f"{name}.csr"), "-CA",
                         self.path("ca.pem"), "-CAkey", self.path("ca.key"), "-CAcreateserial",
                         "-days", "2", "-extfile", str(names), "-out", self.path(f"{name}.pem"))
        assert signed.returncode == 0, signed.stderr

    def use(self, name):
        """Makes `name` the pair that the server reads."""
        for kind in ("pem", "key"):
            shutil.copy(self.path(f"{name}.{kind}"), self.path(f"current.{kind}"))

    def read(self, name):
        return pathlib.Path(self.path(name)).read_bytes()


class TlsServer(harness.Server):
    def __init__(self, certificates, *arguments, client=False, **variables):
        self.certificates, self.client = certificates, client
        super().__init__("--ssl-certfile", certificates.path("current.pem"), "--ssl-keyfile",
                         certificates.path("current.key"), "--header-timeout", "2", *arguments,
                         **variables)

    def url(self, path):
        return f"https://127.0.0.1:{self.port}{path}"

    def curl(self, path, *options, data=None):
        own = ["--cacert", self.certificates.path("ca.pem")]
        if self.client:
            own += ["--cert", self.certificates.path("client.pem"), "--key",
                    self.certificates.path("client.key")]
        return super().curl(path, *own, *options, data=data)

    def channel(self, client=False):
        pair = [self.certificates.read(f"client.{kind}") if client else None
                for kind in ("key", "pem")]
        credentials = grpc.ssl_channel_credentials(self.certificates.read("ca.pem"), *pair)
        return grpc.secure_channel(f"127.0.0.1:{self.grpc_port}", credentials,
                                   [("grpc.use_local_subchannel_pool", 1)])

    def s_client(self, port, *options):
        """openssl s_client that ends after the handshake."""
        run = openssl("s_client", "-connect", f"127.0.0.1:{port}", "-CAfile",
                      self.certificates.path("ca.pem"), "-verify_return_error", *options, input="")
        return run.returncode, run.stdout + run.stderr

    def subject(self, port):
        """Whom the certificate names that a new connection is shown."""
        context = ssl.create_default_context(cafile=self.certificates.path("ca.pem"))
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
                return wrapped.getpeercert()["subject"][0][0][1]


def complete(channel, **fields):
    request = attack.stubs().kivi.GenerateRequest(text="a tale", max_tokens=4, **fields)
    return attack.stubs().kivi_grpc.KiviStub(channel).Complete(request, timeout=5)


class Silent(unittest.TestCase):
    def test_one_address_that_never_speaks_tls_does_not_keep_others_out(self):
        certificates = Certificates()
        certificates.use("server")
        server = TlsServer(certificates, "--max-connections", "8", "--header-timeout", "30")
        try:
            silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
            time.sleep(0.5)
            reply = server.curl("/health", "--interface", "127.0.0.2")
            self.assertEqual(reply.status, 200)
            for connection in silent:
                connection.close()
        finally:
            server.close()


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates()
        cls.certificates.use("server")
        cls.server = TlsServer(cls.certificates)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def test_both_ports_serve_and_need_tls(self):
        self.assertEqual(self.server.complete(prompt="a tale", max_tokens=4).status, 200)
        events = self.server.stream(prompt="a tale", max_tokens=20)
        self.assertTrue(harness.text_of(events))
        with self.server.channel() as channel:
            self.assertEqual(complete(channel).usage.completion_tokens, 4)
        plain = subprocess.run(["curl", "-sS", "--max-time", "5",
                                f"http://127.0.0.1:{self.server.port}/health"],
                               capture_output=True)
        self.assertNotEqual(plain.returncode, 0)
        self.assertEqual(attack.grpc_code(self.server, 2), "UNAVAILABLE")

    def test_kivi_health_speaks_tls(self):
        code, out, _ = harness.kivi("health", "--port", str(self.server.port), "--ssl-certfile",
                                    self.certificates.path("current.pem"))
        self.assertEqual((code, out), (0, "ready\n"))

    def test_tls_1_2_and_1_3_alone(self):
        for port, protocol in ((self.server.port, "http/1.1"), (self.server.grpc_port, "h2")):
            for version, taken in (("-tls1", False), ("-tls1_1", False), ("-tls1_2", True),
                                   ("-tls1_3", True)):
                with self.subTest(port=protocol, version=version):
                    code, text = self.server.s_client(port, version, "-alpn", protocol, "-cipher",
                                                      "DEFAULT:@SECLEVEL=0")
                    self.assertEqual(code == 0, taken, text)
                    self.assertEqual(f"ALPN protocol: {protocol}" in text, taken, text)
            code, _ = self.server.s_client(port, "-alpn", "spdy/1")
            self.assertNotEqual(code, 0)

    def test_large_bodies_and_many_clients_at_once(self):
        prompt = "a tale " * 200
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(
                lambda _: self.server.complete(prompt=prompt, max_tokens=4).status, range(48)))
        self.assertEqual(set(replies), {200})
        large = self.server.post("/tokenize", {"prompt": "tale " * 200_000})
        self.assertEqual(large.status, 200)
        self.assertGreater(len(large.body), 400_000)

    def test_handshakes_that_stall_end(self):
        for port in (self.server.port, self.server.grpc_port):
            held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(50)]
            for connection in held:
                connection.sendall(b"\x16\x03\x01")
            for connection in held:
                self.assertEqual(connection.recv(1), b"")  # within the socket's time
                connection.close()

    def test_noise_ends_its_connection_alone(self):
        for port in (self.server.port, self.server.grpc_port):
            for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000, b"\x16\x03\x01\xff\xff" * 100):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    connection.sendall(noise)
                    try:
                        while connection.recv(4096):
                            pass
                    except ConnectionResetError:
                        pass
        self.assertEqual(self.server.get("/health/ready").status, 200)

    def test_a_client_that_goes_away_ends_its_request(self):
        context = ssl.create_default_context(cafile=self.certificates.path("ca.pem"))
        body = b'{"model": "tales-llama", "prompt": "a", "max_tokens": 1900, "ignore_eos": true}'
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
                wrapped.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                                b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                time.sleep(0.2)
        self.assertTrue(self.server.wait_idle(3))


class Reload(unittest.TestCase):
    @staticmethod
    def wrapped(server):
        """A connection to the HTTP port that stays open."""
        context = ssl.create_default_context(cafile=server.certificates.path("ca.pem"))
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def test_an_idle_connection_and_a_stream_that_runs_go_on_through_sighup(self):
        certificates = Certificates()
        certificates.use("server")
        server = TlsServer(certificates)
        self.addCleanup(server.close)
        with self.wrapped(server) as idle, self.wrapped(server) as streaming:
            idle.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertEqual(attack_http.read_reply(idle)[0], 200)
            streaming.sendall(attack_http.post("/v1/completions", json.dumps(
                {"prompt": "a", "max_tokens": 1900, "ignore_eos": True, "stream": True,
                 "stream_options": {"include_usage": True}}), "Connection: close"))
            received = b""
            while received.count(b"data: ") < 20:
                received += streaming.recv(65536)
            for name in ("renewed", "server", "renewed"):  # while tokens come
                certificates.use(name)
                server.process.send_signal(signal.SIGHUP)
                self.assertTrue(attack.eventually(
                    lambda: server.subject(server.port) == "kivi " + name, 5))
            self.assertEqual(server.metric("num_requests_running"), 1, "the stream ended too early")
            received += attack_http.read_all(streaming)
            self.assertIn(b"data: [DONE]", received)
            self.assertIn(b'"completion_tokens":1900', received.replace(b" ", b""))
            # The idle connection is the one of before, not a new one.
            idle.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertEqual(attack_http.read_reply(idle)[0], 200)
            self.assertEqual(idle.getpeercert()["subject"][0][0][1], "kivi server")
        self.assertTrue(server.wait_idle())

    def test_sighup_reads_the_certificates_again_and_drops_no_connection(self):
        certificates = Certificates()
        certificates.use("server")
        server = TlsServer(certificates)
        try:
            for port in (server.port, server.grpc_port):
                self.assertEqual(server.subject(port), "kivi server")
            with server.channel() as channel:
                self.assertEqual(complete(channel).usage.completion_tokens, 4)
                certificates.use("renewed")
                server.process.send_signal(signal.SIGHUP)
                for port in (server.port, server.grpc_port):
                    self.assertTrue(attack.eventually(
                        lambda: server.subject(port) == "kivi renewed", 5))
                self.assertEqual(complete(channel).usage.completion_tokens, 4)
            pathlib.Path(certificates.path("current.pem")).write_text("rubbish")
            server.process.send_signal(signal.SIGHUP)
            self.assertTrue(attack.eventually(lambda: "ssl_certfile" in server.log_text(), 5))
            self.assertEqual(server.subject(server.port), "kivi renewed")
        finally:
            server.close()


class ClientCertificates(unittest.TestCase):
    def test_only_clients_of_the_authority_are_taken(self):
        certificates = Certificates()
        certificates.use("server")
        server = TlsServer(certificates, "--ssl-ca-certs", certificates.path("ca.pem"),
                           client=True)
        try:
            self.assertEqual(server.complete(prompt="a tale", max_tokens=4).status, 200)
            with server.channel(client=True) as channel:
                self.assertEqual(complete(channel).usage.completion_tokens, 4)
            with server.channel() as channel, self.assertRaises(grpc.RpcError):
                complete(channel)
            server.client = False
            self.assertEqual(server.get("/health").status, 0)
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-keyout", certificates.path("client.key"), "-subj", "/CN=stranger",
                    "-out", certificates.path("client.pem"))
            server.client = True
            self.assertEqual(server.get("/health").status, 0)
        finally:
            server.close()


class Errors(unittest.TestCase):
    def test_files_that_cannot_be_used_are_named(self):
        certificates = Certificates()
        certificates.use("server")
        pem, key = certificates.path("server.pem"), certificates.path("server.key")
        fifo, locked = certificates.path("fifo"), certificates.path("locked.key")
        os.mkfifo(fifo)
        openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
        for flags, field in (
                (("--ssl-certfile", "/nowhere.pem"),
                 "ssl_certfile /nowhere.pem: cannot be opened: No such file"),
                (("--ssl-certfile", certificates.folder.name), "is a folder, must be a regular file"),
                (("--ssl-certfile", fifo), f"ssl_certfile {fifo}: is a FIFO"),
                (("--ssl-certfile", pem, "--ssl-keyfile", fifo), f"ssl_keyfile {fifo}: is a FIFO"),
                # OpenSSL would ask the terminal for the passphrase, also at SIGHUP.
                (("--ssl-certfile", pem, "--ssl-keyfile", locked),
                 f"ssl_keyfile {locked}: the private key is encrypted, must have no passphrase"),
                (("--ssl-certfile", pem), f"ssl_certfile {pem}: no PEM private key can be read"),
                (("--ssl-certfile", pem, "--ssl-keyfile", certificates.path("ca.pem")),
                 f"ssl_keyfile {certificates.path('ca.pem')}: no PEM private key can be read"),
                (("--ssl-certfile", pem, "--ssl-keyfile", certificates.path("client.key")),
                 "ssl_keyfile"),
                (("--ssl-certfile", pem, "--ssl-keyfile", key, "--ssl-ca-certs", key),
                 f"ssl_ca_certs {key}"),
                (("--ssl-keyfile", key), "ssl_keyfile"), (("--ssl-ca-certs", pem), "ssl_ca_certs")):
            with self.subTest(flags=flags):
                run = subprocess.run(
                    [harness.KIVI, "serve", harness.MODEL, "--port", "0", "--grpc-port", "0",
                     *flags], env=harness.environment(), capture_output=True, text=True,
                    timeout=30)
                self.assertEqual(run.returncode, 1)
                self.assertIn(field, run.stderr)


if __name__ == "__main__":
    unittest.main()
