#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The prefix cache end to end: what replies and metrics say of reused tokens, over both ports.

    BINARY_UNDER_TEST=build/kivi tests/e2e/prefix_test.py [-k NAME]
"""

import json
import tempfile
import threading
import unittest

from grpc_test import call
from harness import Server, WithServer

IDS = [3 + i * 7 % 900 for i in range(600)]


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


class Prefix(WithServer):
    arguments = ("--kivi-residual-length", "32", "--kv-cache-dtype", "kivi2.5")

    def ask(self, ids, **more):
        reply = self.server.complete(prompt=ids, temperature=0, max_tokens=8, ignore_eos=True,
                                     return_token_ids=True, **more)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def test_the_same_prompt_is_reused(self):
        ids = [5] + IDS[:299]
        self.assertEqual(cached(self.ask(ids)), 0)
        # 32 sinks and four blocks of 64 tokens.
        self.assertEqual(cached(self.ask(ids)), 288)
        self.assertEqual(cached(self.ask(ids, cache=False)), 0)

    def test_a_chat_of_eight_turns_is_reused_up_to_its_last_block(self):
        ids, reusable, reused = [6] + IDS[:40], 0, 0
        for turn in range(8):
            reply = self.ask(ids)
            if turn:
                reused += cached(reply)
                # Whole blocks of what the server has computed: all but the newest token.
                reusable += max(0, (known - 32) // 64 * 64 + 32 if known >= 96 else 0)
            ids = ids + reply["choices"][0]["token_ids"]
            known = len(ids) - 1
            ids = ids + [100 + turn] * 60
        self.assertEqual(reused, reusable)
        self.assertGreater(reused, 1000)

    def test_samples_share_their_prompt(self):
        before = self.server.metric("prefix_cache_hits_total")
        reply = self.ask([7] + IDS[:299], n=8)
        self.assertEqual(cached(reply), 0)  # the first of them computed it
        self.assertEqual(self.server.metric("prefix_cache_hits_total") - before, 7 * 288)
        texts = {choice["text"] for choice in reply["choices"]}
        self.assertLessEqual(len(texts), 2)  # greedy: from the prompt itself, or after a hit

    def test_many_at_once_compute_their_beginning_once(self):
        before = self.server.metric("prefix_cache_hits_total")
        threads = [threading.Thread(target=self.ask, args=([8] + IDS[:400] + [i] * 100,))
                   for i in range(10, 40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Those that come before the first one has been computed compute it too, four a step.
        self.assertGreaterEqual(self.server.metric("prefix_cache_hits_total") - before, 15 * 352)

    def test_salts_keep_clients_apart(self):
        ids = [9] + IDS[:299]
        self.assertEqual(cached(self.ask(ids, cache_salt="a")), 0)
        self.assertEqual(cached(self.ask(ids, cache_salt="b")), 0)
        self.assertEqual(cached(self.ask(ids)), 0)
        self.assertEqual(cached(self.ask(ids, cache_salt="a")), 288)
        reply = self.server.complete(prompt=ids, cache_salt="x" * 257)
        self.assertEqual((reply.status, reply.json()["error"]["param"]), (400, "cache_salt"))

    def test_grpc_says_the_same(self):
        prompt = "Once upon a time there was a king. " * 12
        usages = []
        for _ in range(2):
            code, out, err = call(self.server, "generate", "--prompt", prompt, "--max-tokens", "4",
                                  "--json")
            self.assertEqual(code, 0, err)
            usages.append(json.loads(out.splitlines()[-1])["usage"])
        self.assertEqual(usages[0].get("cached_tokens", 0), 0)
        self.assertGreater(usages[1].get("cached_tokens", 0), 64)

    def test_metrics_count_it(self):
        ids = [10] + IDS[:299]
        names = ("queries", "hits", "reachable")
        before = [self.server.metric(f"prefix_cache_{name}_total") for name in names]
        self.ask(ids)
        self.ask(ids)
        after = [self.server.metric(f"prefix_cache_{name}_total") for name in names]
        self.assertEqual([b - a for a, b in zip(before, after)], [600, 288, 288])
        self.assertGreater(self.server.metric("prefix_cache_pages"), 0)


class Keys(unittest.TestCase):
    def test_a_key_cannot_see_what_another_one_has_sent(self):
        with tempfile.NamedTemporaryFile("w") as keys:
            keys.write("alice\nbob\n")
            keys.flush()
            for per_key in (False, True):
                server = Server("--api-key-file", keys.name, "--kv-cache-dtype", "kivi2.5",
                                "--kivi-residual-length", "32",
                                *(["--prefix-cache-per-key"] if per_key else []))
                self.addCleanup(server.close)
                with self.subTest(per_key=per_key):
                    body = {"model": "tales-llama", "prompt": IDS[:300], "max_tokens": 1}
                    ask = lambda key: cached(server.post(
                        "/v1/completions", body, "-H", f"Authorization: Bearer {key}").json())
                    self.assertEqual([ask("alice"), ask("alice")], [0, 288])
                    self.assertEqual(ask("bob"), 0 if per_key else 288)


class Off(WithServer):
    arguments = ("--no-enable-prefix-caching",)

    def test_nothing_is_reused(self):
        for _ in range(2):
            reply = self.server.complete(prompt=IDS[:300], max_tokens=1).json()
            self.assertEqual(cached(reply), 0)
        self.assertEqual(self.server.metric("prefix_cache_queries_total"), 0)


if __name__ == "__main__":
    unittest.main()
