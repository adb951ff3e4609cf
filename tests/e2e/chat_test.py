#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Chats end to end: the real program with a template of --chat-template, curl as the client.

    BINARY_UNDER_TEST=build/kivi tests/e2e/chat_test.py [-k NAME]
"""

import tempfile
import unittest

from harness import MODEL, ROOT, WithServer, events_of, kivi

TEMPLATE = str(ROOT / "tests" / "data" / "chat" / "templates" / "zephyr.jinja")
MESSAGES = [{"role": "system", "content": "Tell tales."}, {"role": "user", "content": "Of a king?"}]


class Chat(WithServer):
    arguments = ("--chat-template", TEMPLATE)

    def chat(self, **body):
        asked = {"model": "tales-llama", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
        return self.server.post("/v1/chat/completions", {**asked, **body})

    def test_the_prompt_is_the_templates(self):
        ids = self.server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
        text = self.server.post("/detokenize", {"tokens": ids}).json()["prompt"]
        self.assertEqual(text, "<|system|>\nTell tales.</s>\n<|user|>\nOf a king?</s>\n<|assistant|>\n")
        self.assertEqual(ids.count(2), 2)  # </s> is the token, not its letters

    def test_a_chat_is_the_completion_of_its_prompt(self):
        ids = self.server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
        plain = self.server.complete(prompt=ids, temperature=0, max_tokens=24).json()
        reply = self.chat().json()
        self.assertEqual(reply["choices"][0]["message"]["content"], plain["choices"][0]["text"])
        self.assertEqual(reply["usage"], plain["usage"])

    def test_a_stream_is_the_same_text(self):
        events = events_of(self.chat(stream=True).body)
        text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
        self.assertEqual(text, self.chat().json()["choices"][0]["message"]["content"])
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})

    def test_counters_equal_usage(self):
        names = ("prompt_tokens_total", "generation_tokens_total")
        before = [self.server.metric(name) for name in names]
        usage = self.chat(n=2).json()["usage"]
        after = [self.server.metric(name) for name in names]
        self.assertEqual(after[0] - before[0], usage["prompt_tokens"])
        self.assertEqual(after[1] - before[1], usage["completion_tokens"])

    def test_generate_chats_too(self):
        code, out, err = kivi("generate", MODEL, "--chat-template", TEMPLATE, "--chat", "--system",
                              "Tell tales.", "-p", "Of a king?", "--temperature", "0",
                              "--max-tokens", "24")
        self.assertEqual(code, 0, err)
        self.assertEqual(out[:-1], self.chat().json()["choices"][0]["message"]["content"])


class WithoutTemplate(unittest.TestCase):
    def test_what_is_wrong_with_a_template_is_said_at_once(self):
        code, _, err = kivi("generate", MODEL, "--chat", "-p", "x")
        self.assertNotEqual(code, 0)
        self.assertIn("--chat-template", err)
        code, _, err = kivi("generate", MODEL, "--chat", "-p", "x", "--chat-template", "/nowhere")
        self.assertNotEqual(code, 0)
        self.assertIn("/nowhere", err)
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
            file.write("{{ messages }}\n{% include 'x' %}")
            file.flush()
            code, _, err = kivi("generate", MODEL, "--chat", "-p", "x", "--chat-template", file.name)
        self.assertNotEqual(code, 0)
        self.assertIn("line 2: the tag {% include %} is not supported", err)


if __name__ == "__main__":
    unittest.main()
