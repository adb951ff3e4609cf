#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the machine runs out of: memory of a control group, space on a disk, and room for
connections.

    BINARY_UNDER_TEST=build/kivi tests/attack/machine_test.py [-k NAME]
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import attack_harness as attack
import h2
from attack import connect, post, read_reply
from harness import Server, not_run
from logs_test import PipedServer

MB = 1 << 20


class ControlGroup:
    """A control group of our own with a limit of memory (version 1 or 2), or a test that is not run."""

    def __init__(self, test, megabytes):
        root = pathlib.Path("/sys/fs/cgroup")
        v1 = (root / "memory").is_dir()
        self.folder = (root / "memory" if v1 else root) / f"kivi-attack-{os.getpid()}"
        limits = (["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if v1 else
                  ["memory.max", "memory.swap.max"])
        try:
            self.folder.mkdir()
            test.addCleanup(self.remove)
            (self.folder / limits[0]).write_text(str(megabytes * MB))
        except OSError as error:
            not_run(test, f"no control group can be made here: {error}")
        if (self.folder / limits[1]).exists():  # no swapping instead
            (self.folder / limits[1]).write_text(str(megabytes * MB) if v1 else "0")
        self.peak_file = self.folder / ("memory.max_usage_in_bytes" if v1 else "memory.peak")

    def enter(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_mb(self):
        return int(self.peak_file.read_text()) / MB if self.peak_file.exists() else float("nan")

    def remove(self):
        for _ in range(50):
            try:
                return self.folder.rmdir()
            except OSError:  # a process is still leaving
                time.sleep(0.1)


class Memory(unittest.TestCase):
    def serve(self, group, *arguments):
        class GroupServer(Server):
            preexec = staticmethod(group.enter)
        server = GroupServer(*arguments)
        self.addCleanup(server.close)
        return server

    def send_at_once(self, server, bodies):
        statuses = []

        def one(body):
            try:
                with connect(server) as connection:
                    connection.settimeout(300)
                    connection.sendall(post("/v1/completions", body))
                    statuses.append(read_reply(connection)[0])
            except OSError:
                statuses.append(0)
        threads = [threading.Thread(target=one, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return statuses

    def test_a_process_that_the_kernel_ends_starts_again_on_its_ports(self):
        group = ControlGroup(self, 80)
        server = self.serve(group, "--kv-cache-memory-bytes", str(32 * MB))
        body = '{"prompt":"a","x":[' + ",".join(["123"] * 3_500_000) + "]}"
        self.assertEqual(set(self.send_at_once(server, [body] * 3)), {0})
        self.assertEqual(server.process.wait(timeout=20), -signal.SIGKILL)
        again = subprocess.Popen(server.process.args, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.assertTrue(attack.eventually(
                lambda: server.get("/health/ready").status == 200, 20))
            self.assertEqual(attack.grpc_code(server), "OK")
        finally:
            again.kill()
            again.wait()

    def test_a_plan_that_exceeds_the_group_is_told_at_the_start(self):
        group = ControlGroup(self, 400)
        large = self.serve(group)
        self.assertIn("the control group of this process has 419 MB of memory", large.log_text())
        large.close()
        small = self.serve(group, "--kv-cache-memory-bytes", str(32 * MB),
                           "--max-body-bytes-in-flight", str(64 * MB))
        self.assertNotIn("control group", small.log_text())

    @attack.slow
    def test_the_default_limits_hold_one_gibibyte(self):
        # 16 MB of each of the costliest shapes at once: values, allocations, and texts to tokenize.
        group = ControlGroup(self, 1024)
        server = self.serve(group, "--header-timeout", "300", "--kv-cache-memory-bytes",
                            str(64 * MB))
        values = '{"prompt":"a","x":[' + ",".join(["12"] * 4_100_000) + "]}"
        nodes = '{"prompt":"a","x":[' + ",".join(['{"a":"' + "b" * 50 + '"}'] * 80_000) + "]}"
        text = json.dumps({"prompt": "a" * 1_000_000, "max_tokens": 1, "truncate_prompt_tokens": 5})
        statuses = self.send_at_once(server, [values] * 12 + [nodes] * 12 + [text] * 24)
        print(f"statuses {sorted(statuses)}, peak {group.peak_mb():.0f} MiB of 1024")
        self.assertNotIn(0, statuses)
        self.assertTrue(set(statuses) <= {200, 503}, statuses)
        self.assertIsNone(server.process.poll())
        self.assertEqual(server.complete(prompt="a", max_tokens=1).status, 200)


class FullDisk(unittest.TestCase):
    """A file system of 64 KiB under the log and the key file."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "kivi-attack",
                                  folder.name], capture_output=True, text=True)
        if mounted.returncode != 0:
            not_run(self, f"nothing can be mounted here: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", folder.name], check=True)
        self.folder = pathlib.Path(folder.name)

    def fill(self):
        with open(self.folder / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass

    def test_the_log_goes_on_when_there_is_room_again(self):
        log = self.folder / "log"
        log.touch()
        self.fill()
        server = PipedServer("--enable-log-requests", log=str(log))
        self.addCleanup(server.close)
        self.assertEqual(server.many_log_lines(200), {200})
        self.assertEqual(server.complete(prompt="x", max_tokens=3).status, 200)
        self.assertGreater(server.metric("log_lines_dropped_total"), 0)
        (self.folder / "filler").unlink()

        def told():
            server.many_log_lines(1)
            return "log lines were dropped" in log.read_text()
        self.assertTrue(attack.eventually(told, 10))
        server.terminate()
        self.assertEqual(server.process.wait(timeout=10), 0)
        self.assertIn("drained in", log.read_text())

    def test_a_key_file_that_could_not_be_written_leaves_the_old_keys(self):
        keys = self.folder / "keys"
        keys.write_text("old\n")
        server = Server("--api-key-file", str(keys))
        self.addCleanup(server.close)
        keys.write_bytes(b"")  # as a shell's redirection does before it writes
        self.fill()
        with self.assertRaises(OSError):
            keys.write_text("new\n")
        self.assertEqual(keys.read_bytes(), b"")
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(attack.eventually(
            lambda: "SIGHUP: the old API keys stay" in server.log_text(), 10))
        status = lambda key: server.get(  # noqa: E731
            "/v1/models", "-H", f"Authorization: Bearer {key}").status
        self.assertEqual((status("old"), status("new"), status("")), (200, 401, 401))
        (self.folder / "filler").unlink()
        keys.write_text("new\n")
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(attack.eventually(lambda: status("new") == 200, 10))
        self.assertEqual(status("old"), 401)


class Connections(unittest.TestCase):
    def setUp(self):
        attack.own_limit(12000)

    def hold(self, port, source, count):
        """Connections of one address that send nothing; those that the server took."""
        held = []
        for _ in range(count):
            connection = socket.socket()
            connection.bind((source, 0))
            connection.settimeout(5)
            connection.connect(("127.0.0.1", port))
            held.append(connection)
        self.addCleanup(lambda: [connection.close() for connection in held])
        return held

    def sources(self, count):
        return [f"127.0.0.{i}" for i in range(2, 2 + count)]

    def test_5000_idle_http_connections_of_several_addresses_keep_nobody_out(self):
        server = Server()
        self.addCleanup(server.close)
        before = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        with attack.Growth(server) as growth:
            for source in self.sources(5):
                self.hold(server.port, source, 1000)
            begin = time.monotonic()
            time.sleep(1.1)  # a younger connection keeps its place
            for _ in range(20):
                self.assertEqual(server.complete(prompt="a", max_tokens=1).status, 200)
            self.assertEqual(server.get("/health").status, 200)
            took = time.monotonic() - begin - 1.1
        used = attack.cpu_seconds(server.process.pid)
        time.sleep(0.5)
        idle = attack.cpu_seconds(server.process.pid) - used
        print(f"5000 idle connections: {growth.mb:.0f} MB, 21 requests in {took:.2f} s, "
              f"{idle:.2f} s of CPU in 0.5 s")
        self.assertLess(growth.mb, 64)
        self.assertLess(idle, 0.2)
        self.doCleanups_of_clients()
        self.assertTrue(attack.eventually(
            lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) <= before + 4, 10))

    def doCleanups_of_clients(self):
        closers, self._cleanups = self._cleanups[1:], self._cleanups[:1]
        for closer, arguments, options in reversed(closers):
            closer(*arguments, **options)

    def test_one_address_holds_at_most_half_of_the_http_connections(self):
        server = Server("--max-connections", "40", "--header-timeout", "30")
        self.addCleanup(server.close)
        attacker = self.hold(server.port, "127.0.0.2", 60)
        for connection in attacker:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        time.sleep(1.5)
        # Another address is served, and the attacker's own may still ask for an open path.
        for _ in range(10):
            self.assertEqual(server.complete(prompt="a", max_tokens=1).status, 200)
        options = ("--interface", "127.0.0.2")
        self.assertEqual(server.get("/health", *options).status, 200)
        self.assertEqual(server.get("/v1/models", *options).status, 503)
        self.assertGreater(server.metric("admission_rejections_total", reason="connections"), 0)

    def test_5000_idle_grpc_connections_of_several_addresses_keep_nobody_out(self):
        server = Server()
        self.addCleanup(server.close)
        with attack.Growth(server) as growth:
            for source in self.sources(10):
                self.hold(server.grpc_port, source, 500)
            self.assertTrue(attack.eventually(
                lambda: attack.grpc_code(server, 1) == "OK", 5))
            for _ in range(20):
                self.assertEqual(attack.grpc_code(server, 2), "OK")
        print(f"5000 idle gRPC connections: {growth.mb:.0f} MB")
        self.assertLess(growth.mb, 192)
        self.assertEqual(server.get("/health/ready").status, 200)

    def test_grpc_connections_with_calls_do_not_make_room(self):
        server = Server("--max-grpc-connections", "10")
        self.addCleanup(server.close)
        held = [h2.Connection(server.grpc_port) for _ in range(5)]
        for connection in held:
            self.addCleanup(connection.close)
            connection.open(attack.COMPLETE)
        time.sleep(1.2)
        self.hold(server.grpc_port, "127.0.0.2", 30)
        self.assertTrue(all(connection.is_open(0.02) for connection in held))


if __name__ == "__main__":
    unittest.main()
