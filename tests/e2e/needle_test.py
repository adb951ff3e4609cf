#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A needle in a long prompt, found by a model whose weights are built to copy (scripts/write-copy-model).

    BINARY_UNDER_TEST=build/kivi tests/e2e/needle_test.py [-k NAME]

NEEDLE_TOKENS is the length of the prompt: 6,000 where nothing is set, up to 1,048,000 for a GPU.
"""

import os
import pathlib
import random
import subprocess
import tempfile
import unittest

from harness import ROOT, Server

TOKENS = int(os.environ.get("NEEDLE_TOKENS", "6000"))
NEEDLE = list(range(3000, 3017))  # these tokens stand nowhere else in the prompt


def haystack(count):
    draw = random.Random(3)
    return [draw.randrange(300, 3000) for _ in range(count)]


class Needle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        subprocess.run([ROOT / "scripts" / "write-copy-model", cls.folder.name], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def find(self, *arguments):
        server = Server("--max-model-len", str(TOKENS + 64), "--max-num-seqs", "2",
                        "--prefill-chunk-tokens", "4096", "--max-num-batched-tokens", "8192", *arguments,
                        model=self.folder.name)
        self.addCleanup(server.close)
        model = pathlib.Path(self.folder.name).name
        for depth in (0.02, 0.5, 0.97):
            at = int(TOKENS * depth)
            ids = haystack(TOKENS - len(NEEDLE) - 1)
            ids = ids[:at] + NEEDLE + ids[at:] + NEEDLE[:1]
            reply = server.complete(model=model, prompt=ids, temperature=0, max_tokens=len(NEEDLE) - 1,
                                    ignore_eos=True, return_token_ids=True, cache=False)
            self.assertEqual(reply.status, 200, reply.body)
            self.assertEqual(reply.json()["choices"][0]["token_ids"], NEEDLE[1:], (arguments, depth))

    def test_in_16_bits(self):
        self.find("--kv-cache-dtype", "fp16")

    def test_in_2_bits(self):
        self.find("--kv-cache-dtype", "kivi2", "--kivi-residual-length", "32")

    def test_in_2_bits_of_a_stream(self):
        self.find("--kv-cache-dtype", "kivi2", "--kivi-prefill", "stream")

    def test_in_the_default_format(self):
        self.find("--kv-cache-dtype", "kivi2.5")


if __name__ == "__main__":
    unittest.main(verbosity=2)
