#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The playground in a real browser. Run it with scripts/browser-test.

    BINARY_UNDER_TEST=build/kivi tests/browser/playground_test.py [-k NAME]

KIVI_SCREENSHOTS=DIR keeps pictures. KIVI_AXE=FILE is axe.min.js: with it, the page is audited."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from driver import KEYS, Browser  # noqa: E402
from harness import ROOT, Server, events_of  # noqa: E402

TEMPLATE = str(ROOT / "tests" / "data" / "chat" / "templates" / "zephyr.jinja")


class Playground(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--kivi-residual-length", "32", "--chat-template", TEMPLATE)
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.server.close()

    def setUp(self):
        self.browser.open(self.server.url("/"))
        self.browser.until(lambda: self.browser.text("#model-name") == "tales-llama",
                           "the page names the model")
        # The small model ends its tales when it likes; these tests need them as long as they ask.
        self.browser.run("const body = window.bodyOf; window.bodyOf = (...a) => "
                         "Object.assign(body(...a), {ignore_eos: true, seed: 1})")

    def picture(self, name):
        folder = os.environ.get("KIVI_SCREENSHOTS")
        if folder:
            self.browser.screenshot(pathlib.Path(folder, name + ".png"))

    def answer(self):
        return self.browser.run(
            "return [...document.querySelectorAll('.message.assistant span')].map("
            "(e) => e.textContent).join('')")

    def finished(self):
        return self.browser.text("#status").startswith("Finished")

    def complete(self, prompt, tokens="40"):
        self.browser.click("#tab-completion")
        self.browser.clear("#max_tokens")
        self.browser.type("#max_tokens", tokens)
        self.browser.type("#prompt", prompt)
        self.browser.click("#send")

    def test_a_completion_streams_and_ends(self):
        lengths = set()
        self.complete("Once upon a time", "400")
        self.browser.until(lambda: lengths.add(len(self.answer())) or len(lengths) > 5 or
                           self.finished(), "the answer grows")
        self.assertGreater(len(lengths), 3, "the text did not come in pieces")
        self.browser.until(self.finished, "the answer ends")
        self.assertIn("tokens", self.browser.text("#last"))
        self.picture("completion")
        self.assertEqual(self.browser.console(), [])

    def test_a_chat_goes_on_and_reuses_its_beginning(self):
        for turn in range(3):
            self.browser.type("#prompt", "Tell me of a king and a golden bird. " * 4 +
                              KEYS["Control"] + KEYS["Enter"] + KEYS["Control"])
            self.browser.until(self.finished, "the answer ends", 60)
            count = self.browser.run("return document.querySelectorAll('.message').length")
            self.assertEqual(count, 2 * (turn + 1))
            self.browser.run("document.getElementById('status').textContent = ''")
        self.assertNotIn("(0 reused)", self.browser.text("#last"))
        self.picture("chat")
        self.browser.click("#regenerate")
        self.browser.until(self.finished, "the answer ends", 60)
        self.assertEqual(self.browser.run("return document.querySelectorAll('.message').length"), 6)

    def test_stop_and_escape_end_a_stream(self):
        for stop in (lambda: self.browser.click("#stop"),
                     lambda: self.browser.type("#prompt", KEYS["Escape"])):
            self.complete("Once upon a time", "2000")
            self.browser.until(lambda: len(self.answer()) > 10, "the answer grows")
            stop()
            self.browser.until(lambda: self.browser.text("#status") == "Stopped", "it stops")
            self.assertTrue(self.server.wait_idle())
            self.browser.click("#clear")
            self.browser.clear("#prompt")

    def test_clear_forgets_what_is_under_way(self):
        self.browser.type("#prompt", "Tell me a long tale." + KEYS["Control"] + KEYS["Enter"] +
                          KEYS["Control"])
        self.browser.until(lambda: len(self.answer()) > 10, "the answer grows")
        self.browser.click("#clear")
        self.assertTrue(self.server.wait_idle())
        self.assertEqual(self.browser.run("return state.messages.length"), 0)

    def test_a_message_that_was_refused_is_given_back(self):
        self.browser.run("document.getElementById('form').noValidate = true")
        self.browser.type("#temperature", "1000")
        self.browser.type("#prompt", "Hello")
        self.browser.click("#send")
        self.browser.until(lambda: "temperature" in self.browser.text("#status"),
                           "the server's error is shown")
        self.assertEqual(self.browser.run("return state.messages.length"), 0)
        self.assertEqual(self.browser.run("return document.getElementById('prompt').value"), "Hello")

    def test_tokens_show_their_likelihood(self):
        self.browser.click("#logprobs")
        self.complete("Once upon a", "8")
        self.browser.until(self.finished, "the answer ends")
        tokens = self.browser.run("return [...document.querySelectorAll('.token')].map((e) => e.title)")
        self.assertGreaterEqual(len(tokens), 8)
        self.assertIn("%", tokens[0])
        self.picture("likelihood")

    def test_a_schema_shapes_the_answer(self):
        self.browser.type("#schema", '{"type": "object", "properties": {"age": {"type": "integer", '
                          '"maximum": 99}}, "required": ["age"]}')
        self.complete("The king is", "200")
        self.browser.until(self.finished, "the answer ends", 60)
        self.assertRegex(self.answer(), r'^\s*\{\s*"age"\s*:\s*-?\d+')

    def test_the_system_prompt_and_the_tools_are_sent(self):
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        for box, text in (("#system", "You are a king."), ("#tools", json.dumps([tool]))):
            self.browser.type(box, text)
        self.browser.run("const fetched = window.fetch; window.sent = []; window.fetch = (url, o) => "
                         "{ if (o && o.body) sent.push([String(url), o.body]); return fetched(url, o) }")
        self.browser.type("#prompt", "Who are you?")
        self.browser.click("#send")
        self.browser.until(self.finished, "the answer ends", 60)
        (url, body), = self.browser.run("return window.sent")
        self.assertTrue(url.endswith("/v1/chat/completions"), url)
        body = json.loads(body)
        self.assertEqual(body["messages"], [{"role": "system", "content": "You are a king."},
                                            {"role": "user", "content": "Who are you?"}])
        self.assertEqual(body["tools"], [tool])
        # The boxes of chats are not those of completions.
        self.browser.click("#tab-completion")
        for box in ("chat-only", "tools-box"):
            self.assertTrue(self.browser.run(f"return document.getElementById('{box}').hidden"))

    def test_tools_that_are_no_json_are_said(self):
        self.browser.type("#tools", "[")
        self.browser.type("#prompt", "Who are you?")
        self.browser.click("#send")
        self.assertIn("not JSON", self.browser.text("#status"))
        self.assertEqual(self.browser.run("return document.getElementById('prompt').value"),
                         "Who are you?")

    def test_the_curl_command_asks_for_what_the_page_would(self):
        self.browser.allow_clipboard(self.server.url("/"))
        self.browser.type("#system", "It's a king's \"tale\".")
        self.browser.type("#prompt", "Don't $HOME `stop` \\ é")
        self.browser.clear("#max_tokens")
        self.browser.type("#max_tokens", "12")
        self.browser.type("#key", "my-secret")
        self.browser.click("#curl")
        self.browser.until(lambda: "clipboard" in self.browser.text("#status"), "it is copied")
        command = self.browser.run_async("navigator.clipboard.readText().then(arguments[0])")
        self.assertNotIn("my-secret", command)
        self.assertIn("YOUR_KEY", command)
        run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 0, run.stderr)
        events = events_of(run.stdout)
        self.assertEqual(events[-1]["usage"]["completion_tokens"], 12)
        words = shlex.split(command)
        body = json.loads(words[words.index("-d") + 1])
        self.assertEqual([m["content"] for m in body["messages"]],
                         ["It's a king's \"tale\".", "Don't $HOME `stop` \\ é"])

    def test_what_is_wrong_is_said(self):
        self.browser.type("#schema", "{")
        self.complete("The king is")
        self.assertIn("not JSON", self.browser.text("#status"))
        self.browser.clear("#schema")
        self.browser.clear("#temperature")
        self.browser.type("#temperature", "1000")
        self.browser.run("document.getElementById('form').noValidate = true")
        self.browser.click("#send")
        self.browser.until(lambda: "temperature" in self.browser.text("#status"),
                           "the server's error is shown")

    def test_figures_are_live(self):
        self.complete("Once upon a time", "2000")
        self.browser.until(lambda: self.browser.text("#running") == "1", "it runs")
        self.browser.until(lambda: self.browser.text("#rate") not in ("-", "0"), "tokens are counted")
        self.assertIn("codes", self.browser.text("#legend"))
        self.browser.click("#stop")

    def test_tabs_work_by_keyboard_and_narrow_screens(self):
        self.browser.type("#tab-chat", KEYS["Right"])
        self.assertEqual(self.browser.run("return document.activeElement.id"), "tab-completion")
        self.browser.resize(390, 844)
        try:
            wide = self.browser.run("return document.documentElement.scrollWidth > innerWidth")
            self.assertFalse(wide, "the page scrolls sideways on a phone")
            self.picture("phone")
        finally:
            self.browser.resize(1280, 900)
        for theme in ("light", "dark", "system"):
            self.browser.click("#theme")
            self.assertEqual(self.browser.text("#theme"), "Theme: " + theme)
            self.picture(theme)

    def test_nothing_but_its_own_is_loaded(self):
        loaded = self.browser.run(
            "return performance.getEntriesByType('resource').map((e) => new URL(e.name).origin)")
        self.assertEqual(set(loaded), {f"http://127.0.0.1:{self.server.port}"})
        reply = self.server.get("/")
        self.assertIn("default-src 'none'", reply.headers["content-security-policy"])
        # The policy holds: a script that is written into the page does not run.
        self.browser.run("const s = document.createElement('script');"
                         "s.textContent = 'window.ran = true'; document.body.append(s)")
        self.assertIsNone(self.browser.run("return window.ran ?? null"))

    def test_an_audit_finds_nothing_serious(self):
        axe = os.environ.get("KIVI_AXE")
        if not axe:
            self.skipTest("KIVI_AXE is not set")
        for theme in ("light", "dark"):
            self.browser.run("document.documentElement.dataset.theme = arguments[0]", theme)
            self.assertEqual(self.browser.audit(axe), [], theme)


class Reference(unittest.TestCase):
    """The page at /docs."""

    @classmethod
    def setUpClass(cls):
        cls.server, cls.browser = Server(), Browser()
        cls.browser.open(cls.server.url("/docs"))
        cls.browser.until(lambda: "endpoints" in cls.browser.text("#status"), "the document is shown")

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.server.close()

    def count(self, selector):
        return self.browser.run("return document.querySelectorAll(arguments[0]).length", selector)

    def test_every_endpoint_and_field_is_shown(self):
        paths = self.server.get("/openapi.json").json()["paths"]
        self.assertEqual(self.count("#paths > details"), sum(len(methods) for methods in paths.values()))
        fields = sum(len(o["requestBody"]["content"]["application/json"]["schema"]["properties"])
                     for methods in paths.values() for o in methods.values() if "requestBody" in o)
        self.assertEqual(self.count("#paths tbody tr"), fields)

    def test_a_word_filters(self):
        self.browser.type("#filter", "logit_bias")
        self.browser.until(lambda: self.count("#paths > details[open]") > 0, "endpoints open")
        self.assertEqual(self.count("#paths tbody tr:not([hidden])"), self.count("#paths > details:not([hidden])"))
        self.browser.run("document.getElementById('filter').value = '';"
                         "document.getElementById('filter').dispatchEvent(new Event('input'))")

    def test_a_narrow_screen_does_not_scroll_sideways(self):
        self.browser.run("for (const block of document.querySelectorAll('details')) block.open = true")
        self.browser.resize(390, 844)
        try:
            self.assertFalse(self.browser.run("return document.documentElement.scrollWidth > innerWidth"))
        finally:
            self.browser.resize(1280, 900)

    def test_an_audit_finds_nothing_serious(self):
        axe = os.environ.get("KIVI_AXE")
        if not axe:
            self.skipTest("KIVI_AXE is not set")
        for theme in ("light", "dark"):
            self.browser.run("document.documentElement.dataset.theme = arguments[0]", theme)
            self.assertEqual(self.browser.audit(axe), [], theme)


class WithoutTemplate(unittest.TestCase):
    def test_a_model_without_a_chat_template_can_only_complete(self):
        server, browser = Server(), Browser()
        self.addCleanup(server.close)
        self.addCleanup(browser.close)
        browser.open(server.url("/"))
        browser.until(lambda: browser.text("#model-name") == "tales-llama", "the model is named")
        self.assertTrue(browser.run("return document.getElementById('tab-chat').disabled"))
        browser.type("#prompt", "Once upon a time")
        browser.click("#send")
        browser.until(lambda: browser.text("#status").startswith("Finished"), "the answer ends", 60)


class Off(unittest.TestCase):
    def test_it_can_be_turned_off(self):
        server = Server("--no-playground")
        self.addCleanup(server.close)
        for path in ("/", "/playground.js", "/playground.css", "/docs", "/docs.js"):
            self.assertEqual(server.get(path).status, 404)


if __name__ == "__main__":
    unittest.main()
