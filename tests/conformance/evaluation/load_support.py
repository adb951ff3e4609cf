# SPDX-License-Identifier: Apache-2.0
"""A server under a load generator: 24 chats, 4 at a time, whose tokens the server counts too."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from harness import MODEL, Server  # noqa: E402

TEMPLATE = str(ROOT / "tests" / "data" / "chat" / "templates" / "qwen25.jinja")
REQUESTS, OUTPUT_TOKENS = 24, 24


class UnderLoad(unittest.TestCase):
    def setUp(self):
        self.server = Server("--chat-template", TEMPLATE)
        self.addCleanup(self.server.close)
        folder = tempfile.TemporaryDirectory(prefix="kivi-load-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.target = f"http://127.0.0.1:{self.server.port}"

    def run_program(self, name, *arguments, **variables):
        program = pathlib.Path(sys.executable).with_name(name)
        run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, cwd=self.folder,
                             env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables})
        self.assertEqual(run.returncode, 0, run.stdout[-4000:] + run.stderr[-2000:])

    def check_totals(self, requests, prompt_tokens, output_tokens):
        """What the generator has read in the replies' usage is what the server has counted."""
        self.assertEqual(requests, REQUESTS)
        self.assertEqual(output_tokens, REQUESTS * OUTPUT_TOKENS)
        self.assertEqual(prompt_tokens, self.server.metric("prompt_tokens_total"))
        self.assertEqual(output_tokens, self.server.metric("generation_tokens_total"))
        print(f"{requests} requests, {prompt_tokens} prompt and {output_tokens} output tokens on both sides")
