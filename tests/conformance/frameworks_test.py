# SPDX-License-Identifier: Apache-2.0
"""Frameworks over OpenAI's and Anthropic's dialects: LiteLLM, LangChain, pydantic-ai, instructor, smolagents."""

import asyncio
import json
import unittest
from typing import Literal

import pydantic

from support import CITY, KEY, MODEL, TURNS, WithServer


class Person(pydantic.BaseModel):
    """A person of the tale."""
    name: str = pydantic.Field(min_length=1, max_length=9)
    age: int = pydantic.Field(ge=0, le=150)


class Answer(pydantic.BaseModel):
    """Fits its schema also where a client leaves the bounds of texts and numbers out."""
    name: Literal["Arthur", "Olaf"]
    glad: bool


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


class LiteLLM(WithServer):
    def setUp(self):
        import litellm
        self.litellm = litellm
        self.openai = {"model": f"openai/{MODEL}", "api_base": self.v1, "api_key": KEY, "num_retries": 0}
        self.anthropic = {"model": f"anthropic/{MODEL}", "api_base": self.base, "api_key": KEY, "num_retries": 0}

    def test_both_dialects(self):
        for way in (self.openai, self.anthropic):
            reply = self.litellm.completion(messages=TURNS, max_tokens=6, **way)
            self.assertTrue(reply.choices[0].message.content)
            text = "".join(part.choices[0].delta.content or "" for part in
                           self.litellm.completion(messages=TURNS, max_tokens=6, stream=True, **way))
            self.assertTrue(text)

    def test_tools(self):
        for way in (self.openai, self.anthropic):
            reply = self.litellm.completion(messages=TURNS, tools=[TOOL], tool_choice="required", parallel_tool_calls=False,
                                            max_tokens=300, **way)
            call = reply.choices[0].message.tool_calls[0]
            self.assertEqual(set(json.loads(call.function.arguments)), {"city"})
            self.assertEqual(reply.choices[0].finish_reason, "tool_calls")

    def test_responses(self):
        reply = self.litellm.responses(input="Tell of a king.", max_output_tokens=6, **self.openai)
        self.assertEqual(reply.output[-1].type, "message")

    def test_errors_are_mapped(self):
        with self.assertRaises(self.litellm.ContextWindowExceededError):
            self.litellm.completion(messages=[{"role": "user", "content": "a king " * 4000}], **self.openai)
        with self.assertRaises(self.litellm.AuthenticationError):
            self.litellm.completion(messages=TURNS, **{**self.openai, "api_key": "x"})
        with self.assertRaises(self.litellm.BadRequestError):
            self.litellm.completion(messages=TURNS, temperature=-1, **self.openai)


class LangChain(WithServer):
    def models(self):
        from langchain_anthropic import ChatAnthropic
        from langchain_openai import ChatOpenAI
        openai = {"model": MODEL, "base_url": self.v1, "api_key": KEY, "max_retries": 0}
        yield ChatOpenAI(max_tokens=300, **openai)
        yield ChatOpenAI(max_tokens=300, use_responses_api=True, **openai)
        yield ChatAnthropic(model=MODEL, base_url=self.base, api_key=KEY, max_tokens=300, max_retries=0)

    def test_structured_output(self):
        for model in self.models():
            for method in ("json_schema", "function_calling"):
                with self.subTest(model=type(model).__name__, method=method):
                    self.assertIsInstance(model.with_structured_output(Answer, method=method).invoke("A king."), Answer)

    def test_streams(self):
        for model in self.models():
            with self.subTest(model=type(model).__name__):
                self.assertTrue("".join(part.text if isinstance(part.text, str) else part.text()
                                        for part in model.stream("A king.")))


class PydanticAI(WithServer):
    def models(self):
        # Its AnthropicModel does not work with the pinned version of Anthropic's client.
        from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
        from pydantic_ai.providers.openai import OpenAIProvider
        openai = OpenAIProvider(base_url=self.v1, api_key=KEY)
        yield OpenAIChatModel(MODEL, provider=openai)
        yield OpenAIResponsesModel(MODEL, provider=openai)

    def test_an_agent_gets_its_output_by_a_tool(self):
        from pydantic_ai import Agent
        for model in self.models():
            with self.subTest(model=type(model).__name__):
                agent = Agent(model, output_type=Person, model_settings={"max_tokens": 300, "parallel_tool_calls": False})
                self.assertIsInstance(agent.run_sync("Tell of a king.").output, Person)

    def test_an_agent_gets_its_output_by_a_format(self):
        from pydantic_ai import Agent, NativeOutput
        for model in self.models():
            with self.subTest(model=type(model).__name__):
                agent = Agent(model, output_type=NativeOutput(Person), model_settings={"max_tokens": 300})
                self.assertIsInstance(agent.run_sync("Tell of a king.").output, Person)

    def test_text_streams(self):
        from pydantic_ai import Agent

        async def run(model):
            agent = Agent(model, model_settings={"max_tokens": 12})
            async with agent.run_stream("Tell of a king.") as result:
                return "".join([piece async for piece in result.stream_text(delta=True)])
        for model in self.models():
            with self.subTest(model=type(model).__name__):
                self.assertTrue(asyncio.run(run(model)))


class Instructor(WithServer):
    def test_modes(self):
        import instructor
        import openai
        plain = openai.OpenAI(base_url=self.v1, api_key=KEY, max_retries=0)
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            with self.subTest(mode=mode):
                client = instructor.from_openai(plain, mode=mode)
                person = client.chat.completions.create(model=MODEL, messages=TURNS, response_model=Person, max_tokens=300,
                                                        max_retries=0)
                self.assertIsInstance(person, Person)

    def test_anthropic(self):
        import anthropic
        import instructor
        client = instructor.from_anthropic(anthropic.Anthropic(base_url=self.base, api_key=KEY, max_retries=0),
                                           mode=instructor.Mode.ANTHROPIC_TOOLS)
        person = client.messages.create(model=MODEL, messages=TURNS, response_model=Person, max_tokens=300, max_retries=0)
        self.assertIsInstance(person, Person)


class Smolagents(WithServer):
    def test_a_tool_calling_agent_ends(self):
        from smolagents import OpenAIServerModel, ToolCallingAgent, tool

        @tool
        def get_weather(city: str) -> str:
            """Returns the weather.

            Args:
                city: The city.
            """
            return f"mild in {city}"

        # The agent demands a call, and the model has at most so many steps to call final_answer.
        model = OpenAIServerModel(model_id=MODEL, api_base=self.v1, api_key=KEY, max_tokens=200, temperature=1, seed=3,
                                  parallel_tool_calls=False)
        agent = ToolCallingAgent(tools=[get_weather], model=model, max_steps=3, verbosity_level=0)
        agent.run("Tell of a king.")
        steps = [step for step in agent.memory.steps if hasattr(step, "tool_calls")]
        self.assertTrue(any(step.tool_calls for step in steps))


if __name__ == "__main__":
    unittest.main()
