# SPDX-License-Identifier: Apache-2.0
"""OpenAI's Python client. Replies are validated by the client's own types, strictly."""

import asyncio
import json
import unittest

import openai
import pydantic
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from support import CITY, KEY, MODEL, TURNS, WithServer


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=9)
    age: int = pydantic.Field(ge=0, le=150)


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
RESPONSES_TOOL = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}


class OpenAI(WithServer):
    def setUp(self):
        self.client = openai.OpenAI(base_url=self.v1, api_key=KEY, max_retries=0)
        self.addCleanup(self.client.close)

    def valid(self, kind, reply):
        """The reply as its type reads it: the client itself takes anything."""
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(reply.to_dict()))

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], [MODEL])
        self.assertEqual(self.client.models.retrieve(MODEL).id, MODEL)

    def test_completions(self):
        reply = self.client.completions.create(model=MODEL, prompt=["Once", "A king"], max_tokens=5, logprobs=2)
        self.assertEqual(len(self.valid(Completion, reply).choices), 2)
        parts = list(self.client.completions.create(model=MODEL, prompt="Once", max_tokens=5, stream=True,
                                                    stream_options={"include_usage": True}))
        for part in parts:
            self.assertTrue(part.id.startswith("cmpl-"))
        self.assertEqual(parts[-1].usage.completion_tokens, 5)

    def test_embeddings(self):
        texts = ["Once upon a time", "A king"]
        reply = self.client.embeddings.create(model=MODEL, input=texts)  # the client asks for base64
        self.assertEqual([len(entry.embedding) for entry in reply.data], [256, 256])
        plain = self.client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
        self.valid(CreateEmbeddingResponse, plain)
        for a, b in zip(reply.data, plain.data):
            self.assertLess(max(abs(x - y) for x, y in zip(a.embedding, b.embedding)), 1e-3)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.embeddings.create(model=MODEL, input="x", dimensions=8)
        self.assertEqual((caught.exception.code, caught.exception.param), ("unsupported_parameter", "dimensions"))

    def test_chats(self):
        reply = self.client.chat.completions.create(model=MODEL, messages=TURNS, max_completion_tokens=8, logprobs=True,
                                                    top_logprobs=2, n=2, seed=1)
        self.valid(ChatCompletion, reply)
        self.assertEqual(len(reply.choices[1].logprobs.content[0].top_logprobs), 2)
        text = ""
        for chunk in self.client.chat.completions.create(model=MODEL, messages=TURNS, max_tokens=8, seed=1, stream=True):
            self.valid(ChatCompletionChunk, chunk)
            text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, reply.choices[0].message.content)

    def test_many_at_once_in_async(self):
        async def ask():
            async with openai.AsyncOpenAI(base_url=self.v1, api_key=KEY) as client:
                async def one(seed):
                    stream = await client.chat.completions.create(model=MODEL, messages=TURNS, max_tokens=8, seed=seed,
                                                                  stream=True)
                    return "".join([c.choices[0].delta.content or "" async for c in stream])
                return await asyncio.gather(*(one(i % 4) for i in range(12)))
        texts = asyncio.run(ask())
        self.assertEqual(texts[:4], texts[4:8])
        self.assertEqual(texts[:4], texts[8:])

    def test_parse_into_a_type(self):
        reply = self.client.chat.completions.parse(model=MODEL, messages=TURNS, response_format=Person, max_tokens=300)
        self.assertIsInstance(reply.choices[0].message.parsed, Person)
        with self.client.chat.completions.stream(model=MODEL, messages=TURNS, response_format=Person,
                                                 max_tokens=300) as stream:
            kinds = {event.type for event in stream}
            self.assertIsInstance(stream.get_final_completion().choices[0].message.parsed, Person)
        self.assertIn("content.done", kinds)

    def test_tools(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            reply = self.client.chat.completions.create(model=MODEL, messages=TURNS, tools=[TOOL], tool_choice=choice,
                                                        parallel_tool_calls=False, max_tokens=300)
            self.valid(ChatCompletion, reply)
            message = reply.choices[0].message
            self.assertEqual(set(json.loads(message.tool_calls[0].function.arguments)), {"city"})
            results = [{"role": "tool", "tool_call_id": c.id, "content": "mild"} for c in message.tool_calls]
            self.client.chat.completions.create(model=MODEL, messages=[*TURNS, message, *results], tools=[TOOL], max_tokens=4)
        with self.client.chat.completions.stream(model=MODEL, messages=TURNS, max_tokens=300, tool_choice="required",
                                                 parallel_tool_calls=False, tools=[openai.pydantic_function_tool(Person)]) as stream:
            for _ in stream:
                pass
            call = stream.get_final_completion().choices[0].message.tool_calls[0]
        self.assertIsInstance(call.function.parsed_arguments, Person)

    def test_errors_are_of_their_class(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=MODEL, messages=TURNS, temperature=-1)
        self.assertEqual((caught.exception.param, caught.exception.code), ("temperature", "invalid_value"))
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="gpt", messages=TURNS)
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.v1, api_key="wrong", max_retries=0).models.list()

    def test_responses(self):
        reply = self.client.responses.create(model=MODEL, input="Tell of a king.", instructions="Be short.",
                                             max_output_tokens=8, temperature=0)
        self.valid(Response, reply)
        self.assertTrue(reply.output_text)
        events = list(self.client.responses.create(model=MODEL, input="Tell of a king.", instructions="Be short.",
                                                   max_output_tokens=8, temperature=0, stream=True))
        for event in events:
            self.valid(ResponseStreamEvent, event)
        self.assertEqual(events[-1].response.output_text, reply.output_text)
        parsed = self.client.responses.parse(model=MODEL, input=TURNS, text_format=Person, max_output_tokens=300)
        self.assertIsInstance(parsed.output_parsed, Person)
        with self.client.responses.stream(model=MODEL, input=TURNS, text_format=Person, max_output_tokens=300) as stream:
            for _ in stream:
                pass
            self.assertIsInstance(stream.get_final_response().output_parsed, Person)

    def test_responses_with_tools(self):
        reply = self.client.responses.create(model=MODEL, input=TURNS, tools=[RESPONSES_TOOL], tool_choice="required",
                                             parallel_tool_calls=False, max_output_tokens=300)
        self.valid(Response, reply)
        outputs = [{"type": "function_call_output", "call_id": i.call_id, "output": "mild"} for i in reply.output]
        self.valid(Response, self.client.responses.create(model=MODEL, input=[*TURNS, *reply.output, *outputs],
                                                          max_output_tokens=4))
        with self.client.responses.stream(model=MODEL, input=TURNS, tools=[RESPONSES_TOOL], tool_choice="required",
                                          parallel_tool_calls=False, max_output_tokens=300) as stream:
            for _ in stream:
                pass
            for item in stream.get_final_response().output:
                self.assertEqual(set(json.loads(item.arguments)), {"city"})
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
        self.assertEqual(caught.exception.code, "unsupported_parameter")


if __name__ == "__main__":
    unittest.main()
