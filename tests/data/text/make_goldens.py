#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes sentencepiece_goldens.json and the two small models beside it. Run by hand, from here:

    python3 make_goldens.py      (sentencepiece 0.2.3, transformers 4.57.6, protobuf)

The oracle is LlamaTokenizer of Hugging Face Transformers, the one over SentencePiece ("slow"), with
legacy true and false. The texts spell no special tokens: those Transformers would parse.

small_unigram.model   unigram, extra spaces removed, a user-defined piece
small_spaces.model    BPE whose pieces go across spaces ("of the"), so that texts cannot be cut there
"""
import json
import os
import tempfile

import sentencepiece
from transformers import LlamaTokenizer

TALE = """In olden times when wishing still helped one, there lived a king whose daughters were all beautiful.
The youngest was so beautiful that the sun itself, which has seen so much, was astonished.
Close by the castle of the king lay a great dark forest, and under an old lime tree was a well.
When the day was very warm, the child of the king went out into the forest and sat down by the side.
She took a golden ball, and threw it up on high and caught it, and this ball was her favourite.
Now it happened that the golden ball of the princess did not fall into the little hand of the child.
It rolled straight into the water of the well, and the king's daughter followed it with her eyes.
"""

TEXTS = [
    "Once upon a time there was a king who had three daughters",
    "a", " ", "  ", "   three spaces first", "two  inside", "trailing ", "trailing two  ", " one",
    "\n", "\n\nThe end.\n", "tab\there\r\nand there", "\u2581visible\u2581spaces", "\u2581",
    "the king's daughter, and the child of the king.", "of the king of the well of the child",
    "ball ball  ball   ball", "<ball>the<ball> ball<ball>", "I'm 42 years, 3.14159 % - \"quoted\" (yes)?!",
    "Grüße aus Köln, naïve café, Ærøskøbing", "e\u0301 combining, A\u030a\u0323 twice",
    "你好，世界。日本語のテキスト", "한국어 텍스트", "привет, мир", "שלום עולם", "مرحبا بالعالم",
    "👍🏽 👨‍👩‍👧‍👦 🇩🇪 🏳️‍🌈", "mixed 你好 and 👍 text", "\u200b\u200d\ufeff zero width", "\U0010ffff\U00020000",
    "\x00nul\x00inside\x00", "\x01\x1f\x7f\x80", "\ufffd replacement", "a" * 60, "ab" * 40 + " " * 30 + "x",
    "def f(x):\n    if x > 0:\n\treturn x ** 2\n", "http://example.org/a?b=c&d=%20e#f", "CamelCaseWordsAndSHOUTING",
    "<unk", "< s >", "[INST] not special here [/INST]", "\u00a0nbsp\u3000ideographic\u2003em",
]


def train(name, **options):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        text.write(TALE)
        text.flush()
        sentencepiece.SentencePieceTrainer.train(
            input=text.name, model_prefix=name, byte_fallback=True, normalization_rule_name="identity",
            hard_vocab_limit=False, minloglevel=2, **options)
    os.remove(name + ".vocab")


def goldens(model):
    cases = []
    tokenizers = {legacy: LlamaTokenizer(vocab_file=model, legacy=legacy) for legacy in (True, False)}
    for text in TEXTS:
        case = {"text": text}
        for legacy, key in ((True, "legacy"), (False, "modern")):
            ids = tokenizers[legacy](text)["input_ids"]
            case[key] = ids
            case[key + "_decoded"] = tokenizers[legacy].decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cases.append(case)
    return cases


train("small_unigram", model_type="unigram", vocab_size=360, user_defined_symbols=["<ball>"],
      remove_extra_whitespaces=True)
train("small_spaces", model_type="bpe", vocab_size=420, split_by_whitespace=False,
      remove_extra_whitespaces=False)
LLAMA = "../../../models/tales-llama/tokenizer.model"
with open("sentencepiece_goldens.json", "w") as out:
    json.dump({"made_by": "make_goldens.py",
               "tales-llama": goldens(LLAMA),
               "small_unigram": goldens("small_unigram.model"),
               "small_spaces": goldens("small_spaces.model")}, out, indent=0)
    out.write("\n")
