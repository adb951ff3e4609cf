# SPDX-License-Identifier: Apache-2.0
"""The schemas of SchemaStore, which people wrote for files of other programs, through the compiler of
structured output: which compile, which are refused and why, and whether the texts that come out
validate. Needs build/tests/grammar_walks (KIVI_GRAMMAR_WALKS names another one).

The package schemastore holds the collection as a cache of HTTP replies, pickled. They are read without
being unpickled, because a pickle can run code."""

import collections
import importlib.metadata
import json
import os
import pickletools
import re
import sqlite3
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor

import jsonschema

from support import ROOT

WALKS = os.environ.get("KIVI_GRAMMAR_WALKS", str(ROOT / "build" / "tests" / "grammar_walks"))


def content_of(pickled):
    """The body of a pickled reply: what follows the name _content."""
    named = False
    for operation, argument, _ in pickletools.genops(pickled):
        if argument is None:
            continue
        if named:
            return argument if isinstance(argument, bytes) else None
        named = argument == "_content"
    return None


def collection():
    """The JSON Schemas of the package."""
    package = importlib.metadata.distribution("schemastore")
    place = package.locate_file("schemastore/cache.sqlite")
    with sqlite3.connect(f"file:{place}?mode=ro", uri=True) as cache:
        replies = [row[0] for row in cache.execute("SELECT value FROM responses ORDER BY key")]
    for reply in replies:
        try:
            schema = json.loads(content_of(reply) or b"null")
        except ValueError:
            continue
        if isinstance(schema, dict) and "schemas" not in schema:  # that one is the catalog
            yield schema


def walk(schema):
    """What grammar_walks says of a schema: {"error"} if it was refused, {"texts", ...} if it compiled,
    {"failed"} if the program ended by an error."""
    line = json.dumps({"schema": schema, "accept": []})
    try:
        run = subprocess.run([WALKS, "bytes", "2", "1"], input=line + "\n", capture_output=True, text=True,
                             timeout=120, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"failed": "no answer in 120 s"}
    return json.loads(run.stdout) if run.returncode == 0 else {"failed": run.stderr.strip()}


def reason(message):
    """A refusal without what is particular to its schema."""
    if "$ref" in message:
        return "a $ref that leads out of the schema, or nowhere in it"
    message = message.rpartition("#")[2]
    return re.sub(r"^\S*: ", "", re.sub(r"\d+", "N", message))[:70]


class Collection(unittest.TestCase):
    def test_what_compiles_gives_valid_texts_and_the_rest_is_refused_by_name(self):
        self.assertTrue(os.access(WALKS, os.X_OK), f"{WALKS} is missing: build the target grammar_walks")
        schemas = list(collection())
        self.assertGreater(len(schemas), 300)
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(walk, schemas))
        refused, wrong, texts, unfinished, failed = collections.Counter(), [], 0, 0, collections.Counter()
        compiled = 0
        for schema, answer in zip(schemas, answers):
            name = schema.get("title") or schema.get("$id") or schema.get("id") or "?"
            if "failed" in answer:
                failed[answer["failed"][:90]] += 1
            elif "error" in answer:
                self.assertTrue(answer["error"])
                refused[reason(answer["error"])] += 1
            else:
                compiled += 1
                unfinished += answer["unfinished"]
                # Drafts differ: a text is judged by the one that its schema names.
                kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
                for text in answer["texts"]:
                    texts += 1
                    try:
                        kind(schema).validate(json.loads(text))
                    except jsonschema.ValidationError as error:
                        wrong.append(f"{name}: {error.json_path}: {error.message[:200]}: {text[:300]!r}")
        print(f"{len(schemas)} schemas: {compiled} compiled, {sum(refused.values())} refused, "
              f"{sum(failed.values())} failed; {texts} texts, {unfinished} unfinished, {len(wrong)} wrong")
        for what, count in refused.most_common(25) + failed.most_common(10):
            print(f"{count:5} {what}")
        self.assertEqual(wrong, [])
        self.assertGreater(compiled, 100)
        self.assertEqual(sum(failed.values()), 0, failed)


if __name__ == "__main__":
    unittest.main()
