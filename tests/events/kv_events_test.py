#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An independent subscriber knows what the prefix cache keeps, after 10,000 operations on it.

    tests/events/kv_events_test.py KV_EVENTS_WALK     (python3-zmq, python3-msgpack)
"""

import json
import pathlib
import subprocess
import sys
import unittest

from subscriber import Subscriber

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from ports import free_port  # noqa: E402

WALK = None
TOPIC = "kv@127.0.0.1:8000@tales-llama"


def free_endpoint():
    return f"tcp://127.0.0.1:{free_port()}"


class Walk:
    """The program, which has begun to listen."""

    def __init__(self, format_name, seed, operations):
        self.endpoint, self.replay_endpoint = free_endpoint(), free_endpoint()
        self.process = subprocess.Popen(
            [WALK, self.endpoint, self.replay_endpoint, TOPIC, str(seed), str(operations), format_name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "listening\n":
            self.close()
            raise AssertionError(f"the program does not listen at {self.endpoint}")

    def next(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def units(kept, block_size):
    """The paths of `kept` to the end of every unit, not only of every block."""
    paths = set()
    for path in kept:
        for end in range(block_size, len(path) + 1, block_size):
            paths.add(tuple(path[:end]))
    return paths


class KvEvents(unittest.TestCase):
    def compare(self, subscriber, kept, block_size):
        self.assertEqual(subscriber.block_sizes, {block_size})
        self.assertGreater(len(kept), 5)
        self.assertEqual(set(subscriber.blocks.values()), units(kept, block_size))

    def test_a_subscriber_knows_what_the_cache_keeps_after_ten_thousand_operations(self):
        for format_name, block_size in (("fp16", 64), ("kivi", 128), ("sinks", 32),
                                        ("fp16+host", 64), ("sinks+host", 32)):
            with self.subTest(format_name):
                walk = Walk(format_name, 7, 10_000)
                subscriber = Subscriber(walk.endpoint, TOPIC)
                self.addCleanup(subscriber.close)
                self.addCleanup(walk.close)
                subscriber.read(0.5)  # until it is connected; nothing comes
                state = walk.next()
                kept = state["kept"]
                subscriber.read(0.5)
                counts = walk.next()
                self.assertEqual(counts["dropped"], 0)
                self.assertEqual(subscriber.sequences, list(range(counts["batches"])))
                self.assertEqual(subscriber.topics, {TOPIC})
                self.assertGreater(subscriber.counts["BlockStored"], 500)
                self.assertGreater(subscriber.counts["BlockRemoved"], 100)
                self.assertGreater(subscriber.counts["AllBlocksCleared"], 1)
                self.compare(subscriber, kept, block_size)
                self.assertEqual(len(state["on_host"]) > 20, format_name.endswith("+host"))
                self.assertEqual(set(subscriber.host_blocks.values()),
                                 units(state["on_host"], block_size))
                print(f"{format_name}: {counts} {subscriber.counts}, {len(kept)} blocks kept, "
                      f"{len(state['on_host'])} on the host")

    def test_a_subscriber_that_comes_late_asks_for_what_it_missed(self):
        walk = Walk("sinks", 8, 10_000)
        self.addCleanup(walk.close)
        kept = walk.next()["kept"]
        # The last events may still be on their way to the sockets: ask until no more batches come.
        known, late = -1, None
        while late is None or len(late.sequences) > known:
            known = -1 if late is None else len(late.sequences)
            late = Subscriber(walk.endpoint, "a topic that nobody publishes")
            self.addCleanup(late.close)
            self.assertEqual(late.read(0.5), 0)
            late.replay(walk.replay_endpoint, 0)
        batches = walk.next()["batches"]
        self.assertEqual(late.sequences, list(range(batches)))
        self.compare(late, kept, 32)

    def test_a_replay_begins_where_it_was_asked_to(self):
        walk = Walk("fp16", 9, 2_000)
        self.addCleanup(walk.close)
        walk.next()
        late = Subscriber(walk.endpoint, "nobody")
        self.addCleanup(late.close)
        applied = []
        late.apply = lambda sequence, payload: applied.append(int.from_bytes(sequence, "big"))
        late.replay(walk.replay_endpoint, 5)
        self.assertEqual(applied[0], 5)
        self.assertEqual(applied, list(range(5, applied[-1] + 1)))
        late.replay(walk.replay_endpoint, 1 << 40)
        self.assertEqual(applied[-1], len(applied) + 4)


if __name__ == "__main__":
    WALK = sys.argv.pop(1)
    unittest.main()
