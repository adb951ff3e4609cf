#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes multiple-choice tasks for `kivi eval --choices` from a text: make_cloze.py TEXT OUT.jsonl

How does a sentence that a passage ends in go on? TEXT is UTF-8 with a line `<|story|>` before each
story. A passage is whole sentences of one story, 600 to 800 characters, and the beginning of the
next one; no two passages share a sentence. The choices are the next words of that sentence and the
words in the same place of three other sentences of the story that are not near the passage, so
that names, manner and place in the sentence give nothing away. The same text gives the same tasks.
Only Python's standard library.
"""

import json
import pathlib
import random
import re
import sys

SEED = 5
TASKS_MAX = 200
CHARACTERS_MIN, CHARACTERS_MAX = 600, 800
BEGINNING = 6  # words of the sentence that the passage ends in
WORDS = 6      # of a choice
CHOICES = 4
DISTANCE = 8   # sentences between the passage and a wrong choice, at least


def sentences_of(story):
    text = " ".join(story.split())
    return re.split(r"(?:(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)|(?<=[.!?][\"”'])) (?=[A-Z\"“'])", text)


def parts_of(sentence):
    """The sentence's beginning, and the words after it."""
    words = sentence.split()
    return " ".join(words[:BEGINNING]), " ".join(words[BEGINNING:BEGINNING + WORDS])


def long_enough(sentence):
    return len(sentence.split()) >= BEGINNING + WORDS


def passages(sentences):
    """(begin, end) of sentences, one after the other; sentences[end] goes on and is long enough."""
    begin = 0
    while begin < len(sentences):
        end, size = begin, 0
        while end < len(sentences) and (size < CHARACTERS_MIN or not long_enough(sentences[end])):
            size += len(sentences[end]) + 1
            end += 1
        if end == len(sentences):
            return
        if size <= CHARACTERS_MAX:
            yield begin, end
        begin = end + 1


def picked(items, count, chance):
    """`count` of the items, in random order. Only random(), which every version of Python agrees on."""
    items = list(items)
    return [items.pop(int(chance.random() * len(items))) for _ in range(count)]


def tasks_of(story, chance):
    sentences = sentences_of(story)
    for begin, end in passages(sentences):
        beginning, right = parts_of(sentences[end])
        others = {parts_of(s)[1] for i, s in enumerate(sentences)
                  if long_enough(s) and not begin - DISTANCE <= i < end + DISTANCE} - {right}
        if len(others) < CHOICES - 1:
            continue
        choices = picked([right, *picked(sorted(others), CHOICES - 1, chance)], CHOICES, chance)
        yield {"context": " ".join([*sentences[begin:end], beginning]), "choices": choices,
               "answer": choices.index(right)}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    chance = random.Random(SEED)
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    tasks = [task for story in text.split("<|story|>") for task in tasks_of(story, chance)]
    kept = set(picked(range(len(tasks)), min(TASKS_MAX, len(tasks)), chance))
    lines = [json.dumps(task, ensure_ascii=False) for i, task in enumerate(tasks) if i in kept]
    pathlib.Path(sys.argv[2]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} of {len(tasks)} tasks: {sys.argv[2]}")


if __name__ == "__main__":
    main()
