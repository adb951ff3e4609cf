#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a service manager and a router see of the server: readiness notes of systemd, KV events.

    BINARY_UNDER_TEST=build/kivi tests/e2e/service_test.py [-k NAME]
"""

import os
import pathlib
import random
import socket
import sys
import tempfile
import unittest

from harness import ROOT, Server, kivi
from ports import free_port

sys.path.insert(0, str(ROOT / "tests" / "events"))
from subscriber import Subscriber  # noqa: E402


class Notify(unittest.TestCase):
    def run_with(self, address, name):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(address)
            manager.settimeout(20)
            server = Server(NOTIFY_SOCKET=name)
            self.addCleanup(server.close)
            self.assertEqual(manager.recv(4096), b"STATUS=Loading the model")
            self.assertEqual(manager.recv(4096), b"READY=1\nSTATUS=Serving tales-llama")
            self.assertEqual(server.get("/health/ready").status, 200)
            server.terminate()
            self.assertEqual(manager.recv(4096), b"STOPPING=1\nSTATUS=Running requests finish")
            self.assertEqual(server.process.wait(20), 0)

    def test_systemd_hears_when_the_server_is_ready_and_when_it_stops(self):
        with tempfile.TemporaryDirectory() as folder:
            self.run_with(f"{folder}/notify", f"{folder}/notify")

    def test_the_socket_may_be_abstract(self):
        name = f"kivi-test-{os.getpid()}-{random.getrandbits(32)}"
        self.run_with("\0" + name, "@" + name)

    def test_a_socket_that_nobody_reads_changes_nothing(self):
        for name in ("/no/such/socket", "relative", "/" + "x" * 200):
            server = Server(NOTIFY_SOCKET=name)
            self.addCleanup(server.close)
            self.assertIn("NOTIFY_SOCKET", server.log_text())
            server.terminate()
            self.assertEqual(server.process.wait(20), 0)


class KvEvents(unittest.TestCase):
    """A router's view: what it expects to be reused is what the server reuses."""

    def predicted(self, blocks, ids, block_size):
        """The longest prefix of whole units that is kept, at least one token before the end."""
        paths, known = set(blocks.values()), 0
        while known + block_size < len(ids) and tuple(ids[:known + block_size]) in paths:
            known += block_size
        return known

    def test_a_subscriber_predicts_how_much_of_a_prompt_is_reused(self):
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        # 40 pages of 64 tokens: prompts drive each other out.
        server = Server("--kv-cache-dtype", "fp16", "--kv-cache-memory-bytes", "12MiB",
                        "--max-num-seqs", "4", "--prefill-staging-tokens", "0",
                        "--kv-events-endpoint", endpoint)
        self.addCleanup(server.close)
        subscriber = Subscriber(endpoint, "kv@")
        self.addCleanup(subscriber.close)
        subscriber.read(0.3)
        chance = random.Random(3)
        stems = [[chance.randrange(3, 900) for _ in range(400)] for _ in range(12)]
        hits = 0
        for _ in range(60):
            ids = chance.choice(stems)[:chance.randrange(60, 400)] + [7] * chance.randrange(1, 40)
            expected = self.predicted(subscriber.blocks, ids, 64)
            reply = server.complete(prompt=ids, max_tokens=1).json()
            self.assertEqual(reply["usage"]["prompt_tokens_details"]["cached_tokens"], expected)
            hits += expected > 0
            subscriber.read(0.03)
        self.assertGreater(hits, 10)
        self.assertGreater(subscriber.counts["BlockRemoved"], 0)
        self.assertEqual(subscriber.sequences, list(range(len(subscriber.sequences))))
        self.assertEqual(subscriber.topics,
                         {f"kv@{socket.gethostname()}:{server.port}@tales-llama"})
        self.assertEqual(server.metric("kv_event_batches_total"), len(subscriber.sequences))
        self.assertEqual(server.metric("kv_events_dropped_total"), 0)

    def test_settings_that_contradict_each_other_are_refused(self):
        model = str(ROOT / "models" / "tales-llama")
        for arguments, wanted in (
                (("--kv-events-replay-endpoint", "tcp://*:1"), "--kv-events-endpoint is empty"),
                (("--kv-events-endpoint", "tcp://*:1", "--no-enable-prefix-caching"),
                 "needs --enable-prefix-caching"),
                (("--kv-events-endpoint", "tcp://*:1", "--prefix-cache-per-key"),
                 "does not go with --prefix-cache-per-key"),
                (("--kv-events-endpoint", "5557"), 'is "5557", must be a ZeroMQ endpoint')):
            code, _, error = kivi("serve", model, "--port", "0", "--grpc-port", "-1", *arguments)
            self.assertNotEqual(code, 0)
            self.assertIn(wanted, error)


if __name__ == "__main__":
    unittest.main()
