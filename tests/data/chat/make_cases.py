#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of the chat templates with Debian's python3-jinja2 (3.1.2), set up as
Transformers sets up Jinja for chat templates (5.17: chat_template_utils.py).

    tests/data/chat/make_cases.py                      writes chats.json and snippets.json
    tests/data/chat/make_cases.py --seed 7 --chats 500 --out FILE    another set of chats

chats.json: random chats through each of templates/*.jinja. snippets.json: the variables, then the
templates of snippets.txt, a line each (or between lines of ----), each with these variables.
"""

import argparse
import copy
import json
import pathlib
import random
from datetime import datetime

import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
NOW = 1785067200  # what strftime_now tells, UTC


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


class Raised(Exception):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.utcfromtimestamp(NOW).strftime(form)
    return env


ENVIRONMENT = environment()


def render(template, variables):
    """{"output": ...}, or {"error": "raised" | "failed", "message": ...}."""
    try:
        return {"output": ENVIRONMENT.from_string(template).render(**copy.deepcopy(variables))}
    except Raised as e:
        return {"error": "raised", "message": str(e)}
    except Exception as e:  # whatever Python says: that it fails is what counts
        return {"error": "failed", "message": f"{type(e).__name__}: {e}"}


WORDS = ["hello", "world", " ", "  ", "\n", "\n\n", "\t", "é", "日本語", "🙂", "👩‍🔬", "a\u0301", "\u200b", "\xa0",
         "<s>", "</s>", "[INST]", "{{ 7*7 }}", "{% if %}", "{# #}", "'", '"', "\\", "\\n", "<think>", "</think>",
         "%s", "0", "None", "True", "&<>", "\r\n", "<tool_response>", "ß", "İ", "الى", "\x7f", "x" * 40]


def text(rng):
    return "".join(rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(rng.randrange(0, 8)))


def anything(rng, depth=0):
    kind = rng.randrange(0, 7 if depth < 3 else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, 1, -7, 2**40, 123456789])
    if kind == 2:
        return rng.choice([0.0, 1.5, -0.1, 1e20, 1e-7, 3.141592653589793])
    if kind in (3, 4):
        return text(rng)
    if kind == 5:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(0, 4))]
    return {rng.choice(["a", "b", "c d", "é", "type", "name"]): anything(rng, depth + 1)
            for _ in range(rng.randrange(0, 4))}


def tool(rng):
    return {"type": "function", "function": {
        "name": rng.choice(["get_weather", "search"]), "description": text(rng),
        "parameters": {"type": "object", "properties": {"q": anything(rng), "units": {"enum": ["C", "F"]}},
                       "required": ["q"]}, **({"return": {"type": "string"}} if rng.random() < 0.3 else {})}}


def call(rng):
    out = {"type": "function", "function": {"name": "search", "arguments": {"q": text(rng), "n": rng.choice([1, 2.5, "x"])}}}
    if rng.random() < 0.9:
        out["id"] = rng.choice(["abcdefghi", "123456789", "short"])
    return out


def chat(rng):
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": text(rng)})
    for i in range(rng.randrange(1, 6)):
        role = ["user", "assistant"][i % 2]
        if rng.random() < 0.05:
            role = rng.choice(["user", "assistant", "system", "tool", "other"])
        message = {"role": role, "content": text(rng)}
        if role == "assistant" and rng.random() < 0.25:
            message["tool_calls"] = [call(rng) for _ in range(rng.choice([1, 1, 1, 2]))]
            if rng.random() < 0.5:
                message["content"] = rng.choice([None, ""])
            messages.append(message)
            message = {"role": "tool", "content": rng.choice([text(rng), anything(rng)]),
                       "tool_call_id": "abcdefghi"}
        elif rng.random() < 0.06:
            message["content"] = [{"type": "text", "text": text(rng)}, {"type": "image"}]
        elif role == "assistant" and rng.random() < 0.2:
            message["reasoning_content"] = text(rng)
        messages.append(message)
    variables = {"messages": messages, "bos_token": rng.choice(["<s>", "<|begin_of_text|>"]), "eos_token": "</s>",
                 "add_generation_prompt": rng.random() < 0.5, "tools": None, "documents": None}
    if rng.random() < 0.35:
        variables["tools"] = [tool(rng) for _ in range(rng.randrange(1, 3))]
    for name, values in [("date_string", ["1 Jan 2026"]), ("tools_in_user_message", [True, False]),
                         ("builtin_tools", [["search"], ["code_interpreter", "brave"]]),
                         ("enable_thinking", [True, False])]:
        if rng.random() < 0.25:
            variables[name] = rng.choice(values)
    return variables


VARIABLES = {
    "s": "Hello, Wörld", "empty": "", "n": 7, "x": 2.5, "yes": True, "no": False, "nothing": None,
    "spaced": "  a b\tc \n", "list": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3]],
    "d": {"k": "v", "n": 1, "items": "mine", "é": [1, {"deep": None}]},
    "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 25},
               {"name": "Cy", "age": 31, "tags": []}],
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
                 {"role": "assistant", "content": "A"}],
    "html": "<a href=\"x\">'&'</a>", "lines": "one\ntwo\n\nthree", "emoji": "🙂日本", "quotes": "it's \"so\"",
    "float_text": "3.75", "int_text": " 42 ", "big": 1e16, "small": 1e-5, "third": 0.1,
}


def snippets():
    source = (HERE / "snippets.txt").read_text()
    found = []
    for i, part in enumerate(source.split("\n----\n")):
        found += [part] if i % 2 else [line for line in part.split("\n") if line and not line.startswith("## ")]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chats", type=int, default=14)
    parser.add_argument("--out")
    args = parser.parse_args()
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text()
        rng = random.Random(f"{args.seed} {path.name}")
        for _ in range(args.chats):
            variables = chat(rng)
            cases.append({"template": path.name, "variables": variables, **render(template, variables)})
    write(args.out or HERE / "chats.json", cases)
    if args.out:
        return
    write(HERE / "snippets.json", [{"variables": VARIABLES, "now": NOW}] + [
        {"template": s, **render(s, VARIABLES)} for s in snippets()])


def write(path, values):
    """A list, one value a line."""
    lines = ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    pathlib.Path(path).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
