#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Random JSON Schemas against an independent validator (python3-jsonschema).

    tests/grammar/schemas_test.py BUILD/tests/grammar_walks [--schemas 500] [--seed 1]

Each schema is compiled. Random walks through its masks must give texts that are JSON and that the validator
accepts, with a vocabulary of bytes and with that of models/tales-llama. Instances that are made to fit the
schema must be accepted. No schema of this generator may be refused. A failure prints the schema."""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys

try:
    import jsonschema
except ImportError:
    print("schemas_test.py: not run, because python3-jsonschema is not installed (scripts/setup test installs it)")
    sys.exit(1 if os.environ.get("CI") == "true" else 0)

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ["a", "name", "na", "größe", "x y", 'q"uote', "items", "kind", "back\\slash", "0"]
FORMATS = {"date": "2024-02-29", "time": "12:00:00Z", "date-time": "2020-01-01T00:00:00+01:00",
           "email": "a.b@example.org", "ipv4": "192.168.0.1", "ipv6": "fe80::1", "hostname": "a.example",
           "uuid": "01234567-89ab-4def-8123-456789abcdef", "uri": "https://example.org/a?b=c#d"}
PATTERNS = {"^[a-c]{2,4}$": "abca", "[0-9]+": "x12", "^(foo|bär)": "bär!", "\\.txt$": "a.txt",
            "^[^\"\\\\]*$": "é'", "^\\w+-\\d{1,3}$": "ab-12", "^\\s?x": " x"}


class Maker:
    """Makes schemas, and beside each an instance that fits."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.definitions = {}

    def make(self):
        schema, value = self.schema(3)
        if not isinstance(schema, dict):
            schema, value = {"type": "null"}, None
        if self.definitions:
            schema = dict(schema, **{"$defs": self.definitions})
        return schema, value

    def schema(self, depth):
        kinds = [self.string, self.integer, self.number, self.literal, self.simple]
        if depth > 0:
            kinds += [self.object, self.object, self.array, self.tuple, self.map, self.any_of, self.all_of,
                      self.one_of, self.reference]
        return self.random.choice(kinds)(depth - 1)

    def simple(self, _):
        return self.random.choice([({"type": "boolean"}, True), ({"type": "null"}, None),
                                   ({"type": ["integer", "null"]}, 7), (True, [1, {"x": "y"}]), ({}, "z"),
                                   ({"type": "object"}, {"a": [None]}), ({"type": "array"}, [[], 1.5])])

    def string(self, _):
        kind = self.random.randrange(4)
        if kind == 0:
            return {"type": "string"}, self.random.choice(["", "plain", "é\n\t\"\\ \u2028 \U0001F600"])
        if kind == 1:
            least, most = sorted(self.random.choices(range(12), k=2))
            schema = {"type": "string", "minLength": least, "maxLength": most}
            if self.random.random() < 0.3:
                del schema["maxLength"]
            return schema, "é" * least
        if kind == 2:
            name, value = self.random.choice(list(FORMATS.items()))
            return {"type": "string", "format": name}, value
        name, value = self.random.choice(list(PATTERNS.items()))
        schema = {"type": "string", "pattern": name}
        if self.random.random() < 0.5:
            schema["maxLength"] = len(value) + self.random.randrange(6)
        return schema, value

    def integer(self, _):
        least, most = sorted(self.random.choices(range(-1500, 1500), k=2))
        schema = {"type": "integer"}
        value = self.random.randint(least, most)
        if self.random.random() < 0.7:
            schema[self.random.choice(["minimum", "minimum"])] = least
        if self.random.random() < 0.7:
            schema["maximum"] = most
        if self.random.random() < 0.3:
            schema["exclusiveMaximum"] = most + 1
        if self.random.random() < 0.2:
            schema = {"type": "integer", "multipleOf": 7, "minimum": -50}
            value = -49
        return schema, value

    def number(self, _):
        least, most = sorted(round(self.random.uniform(-300, 300), self.random.randrange(4)) for _ in "ab")
        schema = {"type": "number"}
        if self.random.random() < 0.7:
            schema["minimum"] = least
        if self.random.random() < 0.7 or schema == {"type": "number"}:
            schema["maximum"] = most
        if self.random.random() < 0.3:
            schema["exclusiveMinimum"] = least - 1
        return schema, least

    def literal(self, _):
        values = self.random.sample(["a", "b\"c", 1, 2.5, None, True, [1, "x"], {"k": [None]}, "größe"], 3)
        if self.random.random() < 0.3:
            return {"const": values[0]}, values[0]
        return {"enum": values}, values[1]

    def object(self, depth):
        schema, value = {"type": "object", "properties": {}}, {}
        required = []
        for name in self.random.sample(NAMES, self.random.randrange(5)):
            schema["properties"][name], inside = self.schema(depth)
            if self.random.random() < 0.6:
                required.append(name)
                value[name] = inside
            elif self.random.random() < 0.5:
                value[name] = inside
        if required or self.random.random() < 0.3:
            schema["required"] = required
        more = self.random.random()
        if more < 0.4:
            schema["additionalProperties"] = False
        elif more < 0.7:
            schema["additionalProperties"], inside = self.schema(depth)
            if self.random.random() < 0.5:
                value["another"] = inside
        return schema, value

    def map(self, depth):
        inside, value = self.schema(depth)
        schema = {"type": "object", "additionalProperties": inside}
        if self.random.random() < 0.4:
            schema["maxProperties"] = self.random.randrange(1, 4)
        if self.random.random() < 0.3:
            schema = {"type": "object", "patternProperties": {"^k[0-9]+$": inside}, "additionalProperties": False}
        elif self.random.random() < 0.3:
            schema["propertyNames"] = {"pattern": "^k[0-9]+$"}
        return schema, {"k1": value}

    def array(self, depth):
        inside, value = self.schema(depth)
        schema = {"type": "array", "items": inside}
        least = self.random.randrange(3)
        if least:
            schema["minItems"] = least
        if self.random.random() < 0.5:
            schema["maxItems"] = least + self.random.randrange(3)
        return schema, [value] * least

    def tuple(self, depth):
        parts = [self.schema(depth) for _ in range(self.random.randrange(1, 4))]
        schema = {"type": "array", "prefixItems": [p[0] for p in parts], "minItems": self.random.randrange(len(parts) + 1)}
        more = self.random.random()
        if more < 0.5:
            schema["items"] = False
        elif more < 0.8:
            schema["items"] = {"type": "integer"}
        if self.random.random() < 0.3:
            schema["maxItems"] = max(schema["minItems"], 2)
        count = max(schema["minItems"], min(len(parts), schema.get("maxItems", 9)))
        return schema, [p[1] for p in parts][:count]

    def any_of(self, depth):
        parts = [self.schema(depth) for _ in range(self.random.randrange(1, 4))]
        return {"anyOf": [p[0] for p in parts]}, self.random.choice(parts)[1]

    def one_of(self, depth):
        branches, values = [], []
        for tag in self.random.sample(["cat", "dog", "fish"], 2):
            inside, value = self.schema(depth)
            branches.append({"type": "object", "properties": {"kind": {"const": tag}, "v": inside},
                             "required": ["kind", "v"], "additionalProperties": False})
            values.append({"kind": tag, "v": value})
        return {"oneOf": branches + [{"type": "null"}]}, self.random.choice(values + [None])

    def all_of(self, depth):
        inside, value = self.schema(depth)
        return {"allOf": [{"type": "object", "properties": {"a": inside, "b": {"type": "integer", "minimum": 2}}},
                          {"properties": {"b": {"maximum": 5}}, "required": ["b"]}]}, {"a": value, "b": 3}

    def reference(self, depth):
        name = "d%d" % len(self.definitions)
        self.definitions[name] = True
        inside, value = self.schema(depth)
        self.definitions[name] = {"type": "object", "properties": {
            "v": inside, "next": {"anyOf": [{"$ref": "#/$defs/" + name}, {"type": "null"}]}},
            "required": ["v", "next"], "additionalProperties": False}
        return {"$ref": "#/$defs/" + name}, {"v": value, "next": {"v": value, "next": None}}


def texts_of(value):
    """The value as JSON writes it: compact, with spaces, indented."""
    return [json.dumps(value, ensure_ascii=False, separators=(",", ":")), json.dumps(value, ensure_ascii=False),
            json.dumps(value, ensure_ascii=False, indent=2)]


def without_non_finite(text):
    raise ValueError("not JSON: " + text)


def check(program, vocabulary, walks, seed, cases):
    lines = [json.dumps({"schema": schema, "accept": texts_of(value)}, ensure_ascii=False) for schema, value in cases]
    run = subprocess.run([program, vocabulary, str(walks), str(seed)], input="\n".join(lines) + "\n", text=True,
                         capture_output=True, check=False, cwd=ROOT)
    if run.returncode != 0:
        sys.exit(f"grammar_walks failed with {vocabulary}: {run.stderr}")
    answers = [json.loads(line) for line in run.stdout.split("\n") if line]
    assert len(answers) == len(cases)
    failures, texts, unfinished, compile_ms, mask_us, tokens = 0, 0, 0, [], [], 0
    # Its check of time is that of draft 3, without a zone.
    checker = jsonschema.FormatChecker([f for f in FORMATS if f in jsonschema.FormatChecker.checkers and f != "time"])

    def wrong(what, schema, detail):
        nonlocal failures
        failures += 1
        if failures <= 5:
            print(f"{vocabulary}: {what}\n  schema: {json.dumps(schema, ensure_ascii=False)}\n  {detail}")

    for (schema, value), answer in zip(cases, answers):
        if "error" in answer:
            wrong("refused", schema, answer["error"])
            continue
        validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
        validator.validate(value)  # else this generator is wrong
        for text, accepted in zip(texts_of(value), answer["accepted"]):
            # A const or an enum of lists and objects has one spelling, the compact one.
            if not accepted and (text == texts_of(value)[0] or not literal_inside(schema)):
                wrong("an instance is not accepted", schema, text)
        for text in answer["texts"]:
            texts += 1
            try:
                validator.validate(json.loads(text, parse_constant=without_non_finite))
            except (ValueError, jsonschema.ValidationError) as error:
                wrong("a text does not validate", schema, f"{text!r}: {str(error).splitlines()[0]}")
        unfinished += answer["unfinished"]
        compile_ms.append(answer["compile_ms"])
        if answer["tokens"]:
            mask_us.append(answer["mask_us"][0])
            tokens += answer["tokens"]
    compile_ms.sort()
    mask_us.sort()
    print(f"{vocabulary}: {len(cases)} schemas, {texts} texts of {tokens} tokens, {unfinished} unfinished, {failures} failures; "
          f"compile p50 {compile_ms[len(compile_ms) // 2]:.2f} ms, largest {compile_ms[-1]:.1f} ms; "
          f"a mask, mean of the median schema {mask_us[len(mask_us) // 2]:.1f} us, of the worst {mask_us[-1]:.1f} us")
    if unfinished * 20 > texts:
        print(f"{vocabulary}: {unfinished} of {texts + unfinished} walks did not end, at most 5 % may")
        failures += 1
    return failures


def literal_inside(schema):
    text = json.dumps(schema)
    return '"const"' in text or '"enum"' in text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    cases = [Maker(options.seed * 100000 + i).make() for i in range(options.schemas)]
    failures = check(options.program, "bytes", 4, options.seed, cases)
    failures += check(options.program, "models/tales-llama", 4, options.seed + 7, cases)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
