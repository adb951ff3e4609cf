# SPDX-License-Identifier: Apache-2.0
"""Anthropic's Python client."""

import json
import unittest

import anthropic
import pydantic
from anthropic.types import Message

from support import CITY, KEY, MODEL, PERSON, TURNS, WithServer

# The client has no parameter for it.
GREEDY = {"temperature": 0}
TOOL = {"name": "get_weather", "description": "The weather.", "input_schema": CITY}


class Anthropic(WithServer):
    def setUp(self):
        self.client = anthropic.Anthropic(base_url=self.base, api_key=KEY, max_retries=0)
        self.addCleanup(self.client.close)

    def valid(self, message):
        return pydantic.TypeAdapter(Message).validate_json(json.dumps(message.to_dict(mode="json")))

    def test_messages(self):
        message = self.client.messages.create(model=MODEL, max_tokens=8, messages=TURNS, system="Be short.",
                                              extra_body=GREEDY)
        self.valid(message)
        self.assertEqual((message.role, message.stop_reason, message.usage.output_tokens), ("assistant", "max_tokens", 8))
        with self.client.messages.stream(model=MODEL, max_tokens=8, messages=TURNS, system="Be short.",
                                         extra_body=GREEDY) as stream:
            self.assertEqual("".join(stream.text_stream), message.content[0].text)
            self.assertEqual(stream.get_final_message().stop_reason, "max_tokens")
        self.client.messages.create(model=MODEL, max_tokens=4,
                                    messages=[*TURNS, {"role": "assistant", "content": message.content}, *TURNS])

    def test_tools(self):
        for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}):
            message = self.client.messages.create(model=MODEL, max_tokens=300, messages=TURNS, tools=[TOOL], tool_choice=choice)
            self.valid(message)
            self.assertEqual(message.stop_reason, "tool_use")
            self.assertEqual(set(message.content[0].input), {"city"})
            results = [{"type": "tool_result", "tool_use_id": b.id, "content": "mild"} for b in message.content]
            self.client.messages.create(model=MODEL, max_tokens=4, tools=[TOOL], messages=[
                *TURNS, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}])
        with self.client.messages.stream(model=MODEL, max_tokens=300, messages=TURNS, tools=[TOOL],
                                         tool_choice={"type": "any", "disable_parallel_tool_use": True}) as stream:
            kinds = {event.type for event in stream}
            self.assertEqual(set(stream.get_final_message().content[0].input), {"city"})
        self.assertIn("input_json", kinds)

    def test_a_schema_binds_the_text(self):
        message = self.client.messages.create(model=MODEL, max_tokens=300, messages=TURNS,
                                              output_config={"format": {"type": "json_schema", "schema": PERSON}})
        self.assertEqual(set(json.loads(message.content[0].text)), {"name", "age"})

    def test_count_tokens_and_errors(self):
        count = self.client.messages.count_tokens(model=MODEL, messages=TURNS).input_tokens
        usage = self.client.messages.create(model=MODEL, max_tokens=1, messages=TURNS).usage
        self.assertEqual(count, usage.input_tokens + usage.cache_read_input_tokens)
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.client.messages.create(model=MODEL, max_tokens=4, messages=TURNS, extra_body={"temperature": -1})
        self.assertEqual(caught.exception.body["error"]["type"], "invalid_request_error")
        with self.assertRaises(anthropic.NotFoundError):
            self.client.messages.create(model="claude", max_tokens=4, messages=TURNS)
        with self.assertRaises(anthropic.AuthenticationError):
            anthropic.Anthropic(base_url=self.base, api_key="x", max_retries=0).messages.create(
                model=MODEL, max_tokens=4, messages=TURNS)


if __name__ == "__main__":
    unittest.main()
