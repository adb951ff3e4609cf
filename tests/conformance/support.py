# SPDX-License-Identifier: Apache-2.0
"""A server with a tiny model for clients from PyPI. The masks, not the model's wit, make answers valid."""

import os
import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from harness import Server  # noqa: E402

TEMPLATE = str(ROOT / "tests" / "data" / "chat" / "templates" / "qwen25.jinja")
MODEL = "tales-llama"
KEY = "sk-kivi-test"
TURNS = [{"role": "user", "content": "Tell of a king."}]
# The texts of schemas without a bound would go on until max_tokens.
PERSON = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 9},
                                           "age": {"type": "integer", "minimum": 0, "maximum": 150}},
          "required": ["name", "age"], "additionalProperties": False}
CITY = {"type": "object", "properties": {"city": {"type": "string", "minLength": 1, "maxLength": 8}},
        "required": ["city"], "additionalProperties": False}

# Clients must not ask the world for anything.
os.environ.update({"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
                   "ANONYMIZED_TELEMETRY": "False", "OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY})


class WithServer(unittest.TestCase):
    arguments = ("--chat-template", TEMPLATE, "--api-key", KEY)

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments)
        cls.base = f"http://127.0.0.1:{cls.server.port}"
        cls.v1 = cls.base + "/v1"

    @classmethod
    def tearDownClass(cls):
        cls.server.close()
