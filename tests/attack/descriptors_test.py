# SPDX-License-Identifier: Apache-2.0
"""The limit of file descriptors: the server starts within it, survives its end, and tells when its
gRPC port no longer answers."""

import http.client
import pathlib
import re
import resource
import socket
import subprocess
import time
import unittest

import attack_harness as attack
from attack_harness import harness


class LimitedServer(harness.Server):
    preexec = staticmethod(attack.descriptor_limit(1024))


def idle(port, count):
    held = []
    for _ in range(count):
        try:
            held.append(socket.create_connection(("127.0.0.1", port), timeout=2))
        except OSError:
            break
    return held


class Descriptors(unittest.TestCase):
    def setUp(self):
        attack.own_limit(4096)

    def test_grpc_serves_after_1100_idle_connections(self):
        server = LimitedServer()
        try:
            self.assertIn("this process may open 1024 file descriptors", server.log_text())
            held = idle(server.port, 1100) + idle(server.grpc_port, 300)
            time.sleep(0.5)
            for connection in held:
                connection.close()
            self.assertTrue(attack.eventually(lambda: attack.grpc_code(server) == "OK", 10))
            self.assertTrue(attack.eventually(
                lambda: server.get("/health/ready").status == 200, 5))
        finally:
            server.close()

    def test_the_soft_limit_is_raised_to_the_hard_one(self):
        class Server(harness.Server):
            preexec = staticmethod(attack.descriptor_limit(256, 8192))
        server = Server()
        try:
            limits = pathlib.Path(f"/proc/{server.process.pid}/limits").read_text()
            soft = re.search(r"Max open files\s+(\d+)", limits).group(1)
            self.assertEqual(int(soft), 8192)
        finally:
            server.close()

    def test_chosen_limits_that_do_not_fit_are_an_error(self):
        for flags, names in ((("--max-connections", "5000"), "max_connections 5000"),
                             (("--max-grpc-connections", "900"), "max_grpc_connections 900")):
            with self.subTest(flags=flags):
                run = subprocess.run(
                    [harness.KIVI, "serve", harness.MODEL, "--port", "0", "--grpc-port", "0",
                     *flags], env=harness.environment(), capture_output=True, text=True,
                    timeout=30, preexec_fn=attack.descriptor_limit(1024))
                self.assertEqual(run.returncode, 1)
                self.assertIn(names, run.stderr)
                self.assertIn("may open 1024", run.stderr)
                self.assertIn("ulimit -n", run.stderr)

    @attack.slow
    def test_readiness_fails_while_grpc_does_not_answer(self):
        server = harness.Server()
        try:
            pid = server.process.pid
            kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)

            def ready():
                kept.request("GET", "/health/ready")
                reply = kept.getresponse()
                return reply.status, reply.read().decode()
            self.assertEqual(ready()[0], 200)
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (10, before[1]))  # none is left
            self.assertTrue(attack.eventually(lambda: ready()[0] == 503, 40))
            self.assertIn("grpc_unreachable", ready()[1])
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            self.assertTrue(attack.eventually(lambda: ready()[0] == 200, 20))
            self.assertEqual(attack.grpc_code(server), "OK")
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main()
