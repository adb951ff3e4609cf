#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""/v1/messages, /v1/responses, .../render and reasoning, end to end with a tiny model.

    BINARY_UNDER_TEST=build/kivi tests/e2e/dialects_test.py [-k NAME]
"""

import json
import re
import unittest

from harness import ROOT, Server, WithServer, event_lines, events_of

TEMPLATES = ROOT / "tests" / "data" / "chat" / "templates"
SAME = {"cache": False}
TEXT = "Tell of a king."
CALL = r'(<tool_call>\{"name": "get_weather", "arguments": \{"city": "[a-z]{1,6}"\}\}</tool_call>){2}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
              "required": ["city"], "additionalProperties": False}
PERSON = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 9},
                                           "age": {"type": "integer", "minimum": 0, "maximum": 150}},
          "required": ["name", "age"], "additionalProperties": False}


def named_events(body):
    """The (name, JSON) of each server-sent event; the name must be the JSON's type."""
    events = []
    for name, data in event_lines(body):
        assert name.startswith("event: ") and data.startswith("data: "), (name, data)
        events.append(json.loads(data[6:]))
        assert name[7:] == events[-1]["type"], (name, data)
    return events


class Dialect(WithServer):
    arguments = ("--chat-template", str(TEMPLATES / "qwen25.jinja"), "--served-model-name", "tales",
                 "--served-model-name", "other name")

    def ok(self, reply):
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def chat(self, messages, **body):
        return self.ok(self.server.post("/v1/chat/completions", {
            "messages": messages, "max_tokens": 16, "temperature": 0, **SAME, **body}))

    def prompt_ids(self, messages, **body):
        return self.ok(self.server.post("/v1/chat/completions/render",
                                        {"messages": messages, **body}))["token_ids"]


class Messages(Dialect):
    TOOLS = [{"name": "get_weather", "description": "The weather.", "input_schema": PARAMETERS},
             {"name": "stop", "input_schema": {"type": "object", "additionalProperties": False}}]

    def post(self, **body):
        return self.server.post("/v1/messages", {
            "model": "tales", "max_tokens": 16, "temperature": 0, **SAME,
            "messages": [{"role": "user", "content": TEXT}], **body})

    def stream(self, **body):
        reply = self.post(stream=True, **body)
        self.assertEqual(reply.status, 200, reply.body)
        return named_events(reply.body)

    def joined(self, events):
        """The message that the events of a stream make; checks their order."""
        self.assertEqual([events[0]["type"], events[-2]["type"], events[-1]["type"]],
                         ["message_start", "message_delta", "message_stop"])
        message = events[0]["message"]
        self.assertEqual(message["content"], [])
        open_block = None
        for event in events[1:-2]:
            if event["type"] == "content_block_start":
                self.assertIsNone(open_block)
                open_block = event["index"]
                self.assertEqual(open_block, len(message["content"]))
                message["content"].append({**event["content_block"], "json": ""})
                continue
            self.assertEqual(event["index"], open_block)
            block = message["content"][-1]
            if event["type"] == "content_block_stop":
                open_block = None
                continue
            delta = event["delta"]
            kind = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
            member = kind[delta["type"]]
            if member == "partial_json":
                block["json"] += delta[member]
            else:
                block[member] += delta[member]
        self.assertIsNone(open_block)
        for block in message["content"]:
            text = block.pop("json")
            if block["type"] == "tool_use":
                block["input"] = json.loads(text)
        return {**message, **events[-2]["delta"], "usage": events[-2]["usage"]}

    def test_a_message_is_the_chat_of_the_same_turns(self):
        chat = self.chat([{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}])
        message = self.ok(self.post(system="Be short."))
        self.assertEqual(message["content"], [{"type": "text", "text": chat["choices"][0]["message"]["content"]}])
        names = ("type", "role", "model", "stop_reason", "stop_sequence", "stop_details")
        self.assertEqual({k: message[k] for k in names},
                         {"type": "message", "role": "assistant", "model": "tales", "stop_reason": "max_tokens",
                          "stop_sequence": None, "stop_details": None})
        self.assertTrue(message["id"].startswith("msg_"))
        usage = message["usage"]
        self.assertEqual(usage["input_tokens"] + usage["cache_read_input_tokens"], chat["usage"]["prompt_tokens"])
        self.assertEqual(usage["output_tokens"], 16)
        blocks = self.ok(self.post(system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
                                   messages=[{"role": "user", "content": [{"type": "text", "text": TEXT}]}]))
        self.assertEqual(blocks["content"], message["content"])

    def test_a_stream_makes_the_same_message(self):
        for body in ({}, {"stop_sequences": ["ing"], "max_tokens": 200, "temperature": 1, "seed": 3}):
            whole, streamed = self.ok(self.post(**body)), self.joined(self.stream(**body))
            for name in ("content", "stop_reason", "stop_sequence", "stop_details", "model", "usage"):
                self.assertEqual(streamed[name], whole[name])

    def test_a_stop_sequence_is_named(self):
        text = self.ok(self.post(max_tokens=60))["content"][0]["text"]
        word = re.findall("[a-z]{4,}", text)[-1]
        message = self.ok(self.post(max_tokens=60, stop_sequences=["never", word]))
        self.assertEqual((message["stop_reason"], message["stop_sequence"]), ("stop_sequence", word))
        self.assertEqual(message["content"][0]["text"], text[:text.index(word)])

    def test_a_last_message_of_the_assistant_is_continued(self):
        turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Once upon"}]
        chat = self.chat(turns, add_generation_prompt=False, continue_final_message=True)
        self.assertEqual(self.ok(self.post(messages=turns))["content"][0]["text"],
                         chat["choices"][0]["message"]["content"])

    def test_a_demanded_tool_is_called(self):
        for choice, names in (({"type": "any"}, {"get_weather", "stop"}),
                              ({"type": "tool", "name": "get_weather"}, {"get_weather"}),
                              ({"type": "any", "disable_parallel_tool_use": True}, {"get_weather", "stop"})):
            body = {"tools": self.TOOLS, "tool_choice": choice, "max_tokens": 300, "temperature": 1}
            # A list of calls may go on until max_tokens.
            for seed in range(12):
                body["seed"] = seed
                message = self.ok(self.post(**body))
                if message["stop_reason"] == "tool_use":
                    break
            self.assertEqual(message["stop_reason"], "tool_use")
            for block in message["content"]:
                self.assertEqual(block["type"], "tool_use")
                self.assertTrue(block["id"].startswith("toolu_"))
                self.assertIn(block["name"], names)
                self.assertEqual(set(block["input"]), {"city"} if block["name"] == "get_weather" else set())
            if choice.get("disable_parallel_tool_use"):
                self.assertEqual(len(message["content"]), 1)
            streamed = self.joined(self.stream(**body))
            self.assertEqual([(b["name"], b["input"]) for b in streamed["content"]],
                             [(b["name"], b["input"]) for b in message["content"]])
            self.assertEqual(streamed["stop_reason"], "tool_use")

    def test_calls_in_the_text_become_blocks_and_their_results_go_back(self):
        body = {"tools": self.TOOLS, "structured_outputs": {"regex": CALL}, "max_tokens": 300, "seed": 1}
        message = self.ok(self.post(**body))
        self.assertEqual([b["type"] for b in message["content"]], ["tool_use", "tool_use"])
        self.assertEqual(message["stop_reason"], "tool_use")
        streamed = self.joined(self.stream(**body))
        self.assertEqual([b["input"] for b in streamed["content"]], [b["input"] for b in message["content"]])
        results = [{"type": "tool_result", "tool_use_id": b["id"], "content": [{"type": "text", "text": "mild"}]}
                   for b in message["content"]]
        turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": message["content"]},
                 {"role": "user", "content": [*results, {"type": "text", "text": "And then?"}]}]
        calls = [{"id": b["id"], "type": "function", "function": {"name": b["name"], "arguments": b["input"]}}
                 for b in message["content"]]
        same = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "", "tool_calls": calls},
                *({"role": "tool", "tool_call_id": b["id"], "name": b["name"], "content": "mild"}
                  for b in message["content"]), {"role": "user", "content": "And then?"}]
        count = self.ok(self.server.post("/v1/messages/count_tokens", {"model": "tales", "messages": turns}))
        self.assertEqual(count, {"input_tokens": len(self.prompt_ids(same))})
        self.assertEqual(self.ok(self.post(messages=turns))["content"][0]["text"],
                         self.chat(same)["choices"][0]["message"]["content"])

    def test_count_tokens_counts_tools_and_system(self):
        tools = [{"type": "function", "function": {"name": t["name"], "parameters": t["input_schema"]}}
                 for t in self.TOOLS]
        ids = self.prompt_ids([{"role": "system", "content": "Short."}, {"role": "user", "content": TEXT}], tools=tools)
        body = {"model": "tales", "system": "Short.", "messages": [{"role": "user", "content": TEXT}],
                "tools": [{k: v for k, v in t.items() if k != "description"} for t in self.TOOLS]}
        self.assertEqual(self.ok(self.server.post("/v1/messages/count_tokens", body)), {"input_tokens": len(ids)})

    def test_a_schema_binds_the_text(self):
        for body in ({"output_config": {"format": {"type": "json_schema", "schema": PERSON}}},
                     {"output_format": {"type": "json_schema", "schema": PERSON}}):
            message = self.ok(self.post(max_tokens=200, **body))
            self.assertEqual(set(json.loads(message["content"][0]["text"])), {"name", "age"})

    def test_errors_have_the_shape_of_the_dialect(self):
        for body, kind, part in (
                ({"max_tokens": None}, "invalid_request_error", "max_tokens"),
                ({"messages": []}, "invalid_request_error", "messages"),
                ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_request_error", "messages[0].role"),
                ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "invalid_request_error", "image"),
                ({"messages": [{"role": "user", "content": TEXT * 3000}]}, "invalid_request_error", "context length"),
                ({"stop_sequences": [""]}, "invalid_request_error", "stop_sequences"),
                ({"temperature": -1}, "invalid_request_error", "temperature"),
                ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "invalid_request_error", "bash_20250124"),
                ({"tool_choice": {"type": "any"}}, "invalid_request_error", "tool_choice"),
                ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "invalid_request_error", "thinking"),
                ({"mcp_servers": []}, "invalid_request_error", "mcp_servers"),
                ({"model": "gpt"}, "not_found_error", "gpt")):
            with self.subTest(body=str(body)[:80]):
                reply = self.post(**body)
                error = reply.json()
                self.assertEqual(reply.status, 404 if kind == "not_found_error" else 400, reply.body)
                self.assertEqual((error["type"], error["error"]["type"]), ("error", kind))
                self.assertIn(part, error["error"]["message"])
                self.assertEqual(error["request_id"], reply.headers["x-request-id"])
        reply = self.server.get("/v1/messages")
        self.assertEqual((reply.status, reply.json()["type"]), (405, "error"))


class Keys(unittest.TestCase):
    def test_the_key_may_stand_in_x_api_key(self):
        server = Server("--api-key", "secret", "--chat-template", str(TEMPLATES / "qwen25.jinja"))
        self.addCleanup(server.close)
        body = {"model": "tales-llama", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
        self.assertEqual(server.post("/v1/messages", body, "-H", "x-api-key: secret").status, 200)
        self.assertEqual(server.post("/v1/messages", body, "-H", "Authorization: Bearer secret").status, 200)
        for headers in ((), ("-H", "x-api-key: wrong"), ("-H", "x-api-key: secret", "-H", "Authorization: Bearer x")):
            reply = server.post("/v1/messages", body, *headers)
            self.assertEqual((reply.status, reply.json()["error"]["type"]), (401, "authentication_error"))


class Responses(Dialect):
    TOOLS = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True},
             {"type": "function", "name": "stop", "parameters": {"type": "object", "additionalProperties": False}}]

    def post(self, **body):
        return self.server.post("/v1/responses", {
            "model": "tales", "input": TEXT, "max_output_tokens": 16, "temperature": 0, **SAME, **body})

    def text(self, response):
        return "".join(p["text"] for item in response["output"] if item["type"] == "message" for p in item["content"])

    def joined(self, **body):
        """The last response of a stream; checks that the deltas make its items."""
        reply = self.post(stream=True, **body)
        self.assertEqual(reply.status, 200, reply.body)
        events = named_events(reply.body)
        self.assertEqual([e["sequence_number"] for e in events], list(range(len(events))))
        self.assertEqual([e["type"] for e in events[:2]], ["response.created", "response.in_progress"])
        self.assertEqual(events[0]["response"]["status"], "in_progress")
        last = events[-1]["response"]
        self.assertEqual(events[-1]["type"], "response." + last["status"])
        pieces = {}
        for event in events:
            if event["type"].endswith(".delta"):
                pieces[event["item_id"]] = pieces.get(event["item_id"], "") + event["delta"]
        done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        self.assertEqual(done, last["output"])
        for item in last["output"]:
            text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            self.assertEqual(pieces.get(item["id"], ""), text)
        return last

    def test_a_response_is_the_chat_of_the_same_turns(self):
        chat = self.chat([{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}])
        response = self.ok(self.post(instructions="Be short.", metadata={"a": "b"}))
        self.assertEqual(self.text(response), chat["choices"][0]["message"]["content"])
        self.assertEqual((response["object"], response["status"], response["incomplete_details"]),
                         ("response", "incomplete", {"reason": "max_output_tokens"}))
        self.assertEqual((response["instructions"], response["metadata"], response["store"], response["tools"]),
                         ("Be short.", {"a": "b"}, False, []))
        self.assertEqual(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"])
        self.assertEqual(response["usage"]["total_tokens"], chat["usage"]["total_tokens"])
        items = [{"role": "developer", "content": "Be short."},
                 {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
        self.assertEqual(self.text(self.ok(self.post(input=items))), self.text(response))
        self.assertEqual(self.ok(self.post(input=items, model="other name"))["model"], "tales")

    def test_a_stream_makes_the_same_response(self):
        for body in ({}, {"temperature": 1, "seed": 3, "stop": ["ing"], "max_output_tokens": 200}):
            whole, streamed = self.ok(self.post(**body)), self.joined(**body)
            self.assertEqual(self.text(streamed), self.text(whole))
            for name in ("status", "usage", "model", "incomplete_details"):
                self.assertEqual(streamed[name], whole[name])

    def test_tools_are_called_and_their_results_go_back(self):
        for choice in ("required", {"type": "function", "name": "get_weather"}):
            body = {"tools": self.TOOLS, "tool_choice": choice, "max_output_tokens": 300, "temperature": 1, "seed": 3}
            response, streamed = self.ok(self.post(**body)), self.joined(**body)
            self.assertEqual(response["status"], "completed")
            self.assertEqual((response["tool_choice"], response["tools"]), (choice, self.TOOLS))
            shown = [(i["type"], i["name"], i["arguments"]) for i in response["output"]]
            self.assertEqual(shown, [(i["type"], i["name"], i["arguments"]) for i in streamed["output"]])
            self.assertEqual({t for t, _, _ in shown}, {"function_call"})
        output = response["output"]
        turns = [{"role": "user", "content": TEXT}, *output,
                 *({"type": "function_call_output", "call_id": i["call_id"], "output": "mild"} for i in output)]
        same = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "", "tool_calls": [
            {"id": i["call_id"], "type": "function", "function": {"name": i["name"], "arguments": i["arguments"]}}
            for i in output]}, *({"role": "tool", "tool_call_id": i["call_id"], "name": i["name"], "content": "mild"}
                                 for i in output)]
        self.assertEqual(self.text(self.ok(self.post(input=turns))), self.chat(same)["choices"][0]["message"]["content"])

    def test_a_format_binds_the_text(self):
        form = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": PERSON}}
        response = self.ok(self.post(text=form, max_output_tokens=200))
        self.assertEqual(set(json.loads(self.text(response))), {"name", "age"})
        self.assertEqual((response["status"], response["text"]), ("completed", form))

    def test_what_needs_a_store_is_refused_by_name(self):
        for body, param in (({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id"),
                            ({"conversation": "c"}, "conversation"), ({"background": True}, "background"),
                            ({"include": ["reasoning.encrypted_content"]}, "include"),
                            ({"tools": [{"type": "web_search"}]}, "tools"),
                            ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
                            ({"reasoning": {"effort": "low"}}, "reasoning.effort")):
            reply = self.post(**body)
            self.assertEqual(reply.status, 400, reply.body)
            error = reply.json()["error"]
            self.assertEqual((error["param"], error["code"]), (param, "unsupported_parameter"))
        for body, param in (({"input": []}, "input"), ({"max_output_tokens": 0}, "max_output_tokens"),
                            ({"text": {"format": {"type": "x"}}}, "text.format"), ({"input": None}, "input"),
                            ({"instructions": 3}, "instructions")):
            error = self.post(**body).json()["error"]
            self.assertEqual((error["param"], error["code"]), (param, "invalid_value"))
        for body in ({"store": False}, {"background": False, "truncation": "disabled", "include": []}):
            self.ok(self.post(**body))


class Rendered(Dialect):
    def test_a_prompt_is_rendered_as_it_is_computed(self):
        for body in ({"prompt": ["Once", [5, 6, 7]]}, {"prompt": TEXT, "add_special_tokens": False},
                     {"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2}):
            rendered = self.ok(self.server.post("/v1/completions/render", body))
            choices = self.ok(self.server.post("/v1/completions", {
                "max_tokens": 1, "return_token_ids": True, **body}))["choices"]
            self.assertEqual([r["token_ids"] for r in rendered], [c["prompt_token_ids"] for c in choices])
        body = {"messages": [{"role": "user", "content": TEXT}]}
        rendered = self.ok(self.server.post("/v1/chat/completions/render", body))
        chat = self.ok(self.server.post("/v1/chat/completions", {"max_tokens": 1, "return_token_ids": True, **body}))
        self.assertEqual(rendered["token_ids"], chat["prompt_token_ids"])
        self.assertEqual(rendered["model"], "tales")

    def test_a_wrong_request_is_refused_as_the_completion_is(self):
        for path, body in (("/v1/completions", {"prompt": [9999999]}), ("/v1/completions", {"prompt": "x", "n": 0}),
                           ("/v1/chat/completions", {"messages": []})):
            self.assertEqual(self.server.post(path + "/render", body).json(), self.server.post(path, body).json())


class Names(Dialect):
    def test_every_name_is_the_model(self):
        models = self.ok(self.server.get("/v1/models"))["data"]
        self.assertEqual([m["id"] for m in models], ["tales", "other name"])
        self.assertEqual(self.ok(self.server.get("/v1/models/other%20name"))["id"], "other name")
        for name in ("tales", "other name"):
            reply = self.ok(self.server.post("/v1/completions", {"model": name, "prompt": "Hi", "max_tokens": 1}))
            self.assertEqual(reply["model"], "tales")
        self.assertEqual(self.server.post("/v1/completions", {"model": "tales-llama", "prompt": "Hi"}).status, 404)


class Reasoning(Dialect):
    """A mask makes the model think aloud; the parser must find the reasoning."""
    arguments = ("--chat-template", str(TEMPLATES / "thinking.jinja"), "--tool-call-parser", "hermes")
    THOUGHT = {"structured_outputs": {"regex": r"<think>\n[a-z]{3,9} [a-z]{3,9}\n</think>\n\n[a-z]{2,8}"}}

    def test_chats(self):
        for seed in range(3):
            body = {"seed": seed, "temperature": 1, "max_tokens": 100, **self.THOUGHT}
            message = self.chat([{"role": "user", "content": TEXT}], **body)["choices"][0]["message"]
            self.assertRegex(message["reasoning_content"], "^[a-z]{3,9} [a-z]{3,9}$")
            self.assertRegex(message["content"], "^[a-z]{2,8}$")
            reply = self.server.post("/v1/chat/completions", {
                "messages": [{"role": "user", "content": TEXT}], "stream": True, **SAME, **body})
            deltas = [c["delta"] for e in events_of(reply.body) for c in e["choices"]]
            self.assertEqual("".join(d.get("reasoning_content", "") for d in deltas), message["reasoning_content"])
            self.assertEqual("".join(d.get("content", "") for d in deltas), message["content"])

    def test_messages_and_responses(self):
        body = {"model": "tales-llama", "seed": 1, "temperature": 1, **SAME, **self.THOUGHT}
        turns = [{"role": "user", "content": TEXT}]
        messages = self.ok(self.server.post("/v1/messages", {"messages": turns, "max_tokens": 100, **body}))
        self.assertEqual([b["type"] for b in messages["content"]], ["thinking", "text"])
        events = named_events(self.server.post("/v1/messages", {
            "messages": turns, "max_tokens": 100, "stream": True, **body}).body)
        thinking = "".join(e["delta"].get("thinking", "") for e in events if e["type"] == "content_block_delta")
        self.assertEqual(thinking, messages["content"][0]["thinking"])
        self.ok(self.server.post("/v1/messages", {"max_tokens": 8, "messages": [
            *turns, {"role": "assistant", "content": messages["content"]}, *turns]}))
        response = self.ok(self.server.post("/v1/responses", {"input": TEXT, "max_output_tokens": 100, **body}))
        self.assertEqual([i["type"] for i in response["output"]], ["reasoning", "message"])
        self.assertEqual(response["output"][0]["content"][0]["text"], thinking)
        self.assertGreater(response["usage"]["output_tokens_details"]["reasoning_tokens"], 0)
        self.ok(self.server.post("/v1/responses", {"input": [*turns, *response["output"], *turns],
                                                   "max_output_tokens": 4}))

    def test_thinking_switches_the_template(self):
        plain = self.prompt_ids([{"role": "user", "content": TEXT}])
        off = self.prompt_ids([{"role": "user", "content": TEXT}], chat_template_kwargs={"enable_thinking": False})
        self.assertNotEqual(plain, off)
        for thinking, ids in (({"type": "disabled"}, off), ({"type": "enabled", "budget_tokens": 2000}, plain)):
            count = self.ok(self.server.post("/v1/messages/count_tokens", {
                "messages": [{"role": "user", "content": TEXT}], "thinking": thinking}))
            self.assertEqual(count["input_tokens"], len(ids))


if __name__ == "__main__":
    unittest.main(verbosity=2)
