#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Structured output and tool calls end to end: a tiny model that knows no JSON writes what the masks allow.

    BINARY_UNDER_TEST=build/kivi tests/e2e/structured_test.py [-k NAME]
"""

import json
import re
import unittest

from grpc_test import call
from harness import ROOT, TEXT, Server, WithServer, events_of

TEMPLATE = str(ROOT / "tests" / "data" / "chat" / "templates" / "qwen25.jinja")
# The numbers of a prompt that goes on from the prefix cache differ a little.
SAME = {"cache": False}
MESSAGES = [{"role": "user", "content": "Tell of a king."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["glad", "sad"]},
        "friends": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,6}$"}, "maxItems": 2},
    },
    "required": ["name", "age", "mood", "friends"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"], "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}}}},
    {"type": "function", "function": {"name": "stop"}}]


class Structured(WithServer):
    arguments = ("--chat-template", TEMPLATE)

    def complete(self, **body):
        return self.server.complete(**{"prompt": "Once upon a time", "max_tokens": 300, **SAME, **body})

    def chat(self, **body):
        return self.server.post("/v1/chat/completions",
                                {"model": "tales-llama", "messages": MESSAGES, "max_tokens": 300, **SAME, **body})

    def error_of(self, reply):
        self.assertEqual(reply.status, 400, reply.body)
        return reply.json()["error"]

    def judge(self, text):
        value = json.loads(text)
        self.assertEqual(list(value), ["name", "age", "mood", "friends"])
        self.assertTrue(1 <= len(value["name"]) <= 12)
        self.assertTrue(0 <= value["age"] <= 150 and isinstance(value["age"], int))
        self.assertIn(value["mood"], ("glad", "sad"))
        self.assertTrue(all(re.fullmatch("[a-z]{2,6}", f) for f in value["friends"]))

    def test_a_schema_makes_json_whatever_the_sampling(self):
        for sampling in ({"temperature": 0}, {"temperature": 1, "seed": 3}, {"temperature": 2, "seed": 4, "top_k": 5},
                         {"temperature": 1, "seed": 5, "logprobs": 3}, {"temperature": 1, "seed": 6, "ignore_eos": True},
                         {"temperature": 1, "seed": 7, "repetition_penalty": 1.2, "min_tokens": 100}):
            reply = self.complete(structured_outputs={"json": PERSON}, **sampling)
            self.assertEqual(reply.status, 200, reply.body)
            choice = reply.json()["choices"][0]
            self.judge(choice["text"])
            self.assertEqual(choice["finish_reason"], "stop")

    def test_every_name_of_the_parameters(self):
        self.judge(self.complete(guided_json=json.dumps(PERSON)).json()["choices"][0]["text"])
        self.judge(self.chat(response_format={"type": "json_schema", "json_schema": {
            "name": "person", "strict": True, "schema": PERSON}}).json()["choices"][0]["message"]["content"])
        for body in ({"guided_regex": "[ab]{3}-\\d+"}, {"structured_outputs": {"regex": "[ab]{3}-\\d+"}}):
            reply = self.complete(max_tokens=40, **body).json()["choices"][0]
            self.assertRegex(reply["text"], "^[ab]{3}-[0-9]*$")
        for body in ({"guided_choice": ["yes", "no"]}, {"structured_outputs": {"choice": ["yes", "no"]}}):
            reply = self.complete(n=4, **body).json()
            self.assertTrue({c["text"] for c in reply["choices"]} <= {"yes", "no"})
        grammar = 'root ::= "<" [a-z]{3} ">" | "none"'
        for body in ({"guided_grammar": grammar}, {"structured_outputs": {"grammar": grammar}}):
            self.assertRegex(self.complete(**body).json()["choices"][0]["text"], "^(<[a-z]{3}>|none)$")
        lark = 'start: WORD ("," WORD)~1..2\nWORD: /[a-z]{2}/'
        self.assertRegex(self.complete(guided_grammar=lark).json()["choices"][0]["text"], "^[a-z]{2}(,[a-z]{2}){1,2}$")
        value = self.complete(structured_outputs={"json_object": True}, max_tokens=400, logit_bias={}).json()
        self.assertTrue(value["choices"][0]["text"].lstrip().startswith("{"))
        text = self.chat(response_format={"type": "text"}, max_tokens=8).json()["choices"][0]["message"]["content"]
        self.assertFalse(text.startswith("{"))

    def test_a_stream_is_the_same_text(self):
        body = {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}, "seed": 11}
        events = events_of(self.chat(stream=True, **body).body)
        text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
        self.judge(text)
        self.assertEqual(text, self.chat(**body).json()["choices"][0]["message"]["content"])

    def test_free_and_bound_requests_side_by_side_change_nothing_for_each_other(self):
        import concurrent.futures
        free = {"temperature": 1, "seed": 1, "max_tokens": 60}
        alone = self.complete(**free).json()["choices"][0]["text"]
        bound_alone = self.complete(structured_outputs={"json": PERSON}, seed=2).json()["choices"][0]["text"]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            frees = [pool.submit(self.complete, **free) for _ in range(6)]
            bounds = [pool.submit(self.complete, structured_outputs={"json": PERSON}, seed=2) for _ in range(6)]
            for future in frees:
                self.assertEqual(future.result().json()["choices"][0]["text"], alone)
            for future in bounds:
                self.assertEqual(future.result().json()["choices"][0]["text"], bound_alone)

    def test_what_is_wrong_gets_400_with_its_name(self):
        def schema(text):
            return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": text}}}
        for body, field, part in (
                (schema({"type": "array", "uniqueItems": True}), "response_format", "uniqueItems"),
                (schema({"properties": {"a": {"not": {}}}}), "response_format", "#/properties/a"),
                (schema({"type": "string", "format": "color"}), "response_format", "color"),
                (schema(3), "response_format", "JSON Schema"),
                ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
                ({"response_format": {"type": "xml"}}, "response_format", "xml"),
                ({"guided_regex": "(?=a)"}, "guided_regex", "look-around"),
                ({"guided_regex": ""}, "guided_regex", "empty"),
                ({"guided_choice": []}, "guided_choice", "list"),
                ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "both"),
                ({"structured_outputs": {}}, "structured_outputs", "must have"),
                ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "several"),
                ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar", "the rule x"),
                ({"guided_json": "{"}, "guided_json", "not JSON")):
            error = self.error_of(self.complete(**body))
            self.assertEqual(error["param"], field, error)
            self.assertIn(part, error["message"])

    def test_grpc(self):
        code, out, err = call(self.server, "complete", "--json-schema", json.dumps(PERSON), "--max-tokens", "300")
        self.assertEqual(code, 0, err)
        self.judge(out)
        code, out, err = call(self.server, "generate", "--choice", "yes", "--choice", "no")
        self.assertEqual((code, out.strip() in ("yes", "no")), (0, True), err)
        code, out, err = call(self.server, "complete", "--regex", "[xy]{5}")
        self.assertRegex(out, "^[xy]{5}\n$")
        code, out, err = call(self.server, "complete", "--json-schema", '{"not":{}}')
        self.assertNotEqual(code, 0)
        self.assertIn("INVALID_ARGUMENT", out + err)
        self.assertIn("structured_output.json_schema", out + err)

    def test_a_demanded_tool_is_called(self):
        reply = self.chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}})
        self.assertEqual(reply.status, 200, reply.body)
        choice = reply.json()["choices"][0]
        self.assertEqual((choice["finish_reason"], choice["message"]["content"]), ("tool_calls", None))
        [made] = choice["message"]["tool_calls"]
        self.assertEqual((made["type"], made["function"]["name"]), ("function", "get_weather"))
        self.assertTrue(made["id"].startswith("call_"))
        arguments = json.loads(made["function"]["arguments"])
        self.assertTrue(1 <= arguments["days"] <= 9 and len(arguments["city"]) <= 8)

    def test_required_calls_and_their_stream(self):
        body = {"tools": TOOLS, "tool_choice": "required", "seed": 9, "parallel_tool_calls": False}
        [made] = self.chat(**body).json()["choices"][0]["message"]["tool_calls"]
        self.assertIn(made["function"]["name"], ("get_weather", "stop"))
        events = events_of(self.chat(stream=True, **body).body)
        name, arguments, reasons = "", "", []
        for event in events:
            for choice in event["choices"]:
                reasons.append(choice["finish_reason"])
                for part in choice["delta"].get("tool_calls", []):
                    self.assertEqual(part["index"], 0)
                    name += part["function"].get("name", "")
                    arguments += part["function"]["arguments"]
        self.assertEqual((name, json.loads(arguments)), (made["function"]["name"], json.loads(made["function"]["arguments"])))
        self.assertEqual([r for r in reasons if r], ["tool_calls"])

    def test_wrong_tool_choices(self):
        for body, field in (({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": "maybe"}, "tool_choice"),
                            ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
                            ({"tools": [{"type": "function", "function": {}}]}, "tools"),
                            ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
                            ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
                              "tool_choice": "required"}, "tools")):
            self.assertEqual(self.error_of(self.chat(**body))["param"], field)

    def test_a_message_with_calls_needs_no_content(self):
        calls = [{"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}]
        reply = self.chat(messages=MESSAGES + [{"role": "assistant", "content": None, "tool_calls": calls},
                                               {"role": "tool", "tool_call_id": "call_1", "content": "ok"}],
                          max_tokens=4)
        self.assertEqual(reply.status, 200, reply.body)


class TokenRules(WithServer):
    """allowed_token_ids, bad_words and min_tokens on a real model."""
    arguments = ()

    def choice(self, **body):
        reply = self.server.complete(**{"prompt": TEXT, "max_tokens": 40, "temperature": 0, **SAME, **body})
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()["choices"][0]

    def test_no_other_tokens_than_the_allowed_ones(self):
        for sampling in ({}, {"temperature": 1, "seed": 4}):
            ids = self.choice(allowed_token_ids=[300, 301, 4000], return_token_ids=True, **sampling)["token_ids"]
            self.assertEqual(len(ids), 40)
            self.assertLessEqual(set(ids), {300, 301, 4000})

    def test_bad_words_do_not_come(self):
        plain = self.choice()["text"]
        words = sorted({w for w in re.findall("[a-z]{3,}", plain)})
        self.assertGreater(len(words), 5)
        for word in words[:6]:
            text = self.choice(bad_words=[word])["text"]
            self.assertNotIn(word, re.findall("[A-Za-z]+", text))
        # The words change the text from where the first of them stood on, and not before.
        begin = min(plain.index(w) for w in words)
        self.assertTrue(self.choice(bad_words=words)["text"].startswith(plain[:begin].rstrip()))

    def test_a_format_goes_before_bad_words(self):
        for words in (["king"], ["k", "ki", "kin", "king", "i", "in", "ing", "n", "ng", "g"]):
            self.assertEqual(self.choice(guided_choice=["king"], bad_words=words)["text"], "king")

    def test_min_tokens_lengthens_a_format_that_can_go_on(self):
        for seed in range(6):
            short = self.choice(guided_regex="[a-z ]+", min_tokens=20, temperature=1, seed=seed, logprobs=0)
            self.assertGreaterEqual(len(short["logprobs"]["tokens"]), 20)
            self.assertRegex(short["text"], "^[a-z ]+$")
        self.assertEqual(self.choice(guided_choice=["yes"], min_tokens=20)["finish_reason"], "stop")


# A regular expression of one or two calls, in each way of writing them.
CALLS = {
    "hermes": r'(<tool_call>\{"name": "get_weather", "arguments": \{"city": "[a-z]{1,6}"\}\}</tool_call>){1,2}',
    "llama3_json": r'\{"name": "get_weather", "parameters": \{"city": "[a-z]{1,6}"\}\}',
    "mistral": r'\[TOOL_CALLS\] ?\[\{"name": "get_weather", "arguments": \{"city": "[a-z]{1,6}"\}\}\]',
    "pythonic": r"\[get_weather\(city='[a-z]{1,6}'\)(, stop\(\))?\]",
}


class Parsers(unittest.TestCase):
    """tool_choice auto: a mask makes the model write calls as a family does, and the parser finds them."""

    def test_each_family(self):
        for parser, regex in CALLS.items():
            server = Server("--chat-template", TEMPLATE, "--tool-call-parser", parser)
            self.addCleanup(server.close)
            for seed in range(4):
                with self.subTest(parser=parser, seed=seed):
                    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 200, "seed": seed, **SAME,
                            "structured_outputs": {"regex": regex}}
                    self.check(server, body)

    def check(self, server, body):
        reply = server.post("/v1/chat/completions", body)
        self.assertEqual(reply.status, 200, reply.body)
        choice = reply.json()["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls", choice)
        self.assertIsNone(choice["message"]["content"])
        whole = [(c["function"]["name"], json.loads(c["function"]["arguments"]))
                 for c in choice["message"]["tool_calls"]]
        self.assertEqual(whole[0][0], "get_weather")
        self.assertRegex(whole[0][1]["city"], "^[a-z]{1,6}$")
        names, arguments, reasons = [], [], []
        for event in events_of(server.post("/v1/chat/completions", {**body, "stream": True}).body):
            for part in event["choices"]:
                reasons.append(part["finish_reason"])
                self.assertFalse(part["delta"].get("content"))
                for call_part in part["delta"].get("tool_calls", []):
                    if "id" in call_part:
                        names.append(call_part["function"]["name"])
                        arguments.append("")
                    self.assertEqual(call_part["index"], len(names) - 1)
                    arguments[-1] += call_part["function"]["arguments"]
        self.assertEqual([(n, json.loads(a)) for n, a in zip(names, arguments)], whole)
        self.assertEqual([r for r in reasons if r], ["tool_calls"])


if __name__ == "__main__":
    unittest.main()
