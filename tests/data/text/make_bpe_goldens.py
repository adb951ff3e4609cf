#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes bpe_goldens.json. Run by hand, from here:

    python3 make_bpe_goldens.py      (tokenizers 0.22.2)

The oracle is Hugging Face's tokenizers over models/tales-falcon/tokenizer.json, as it is and with parts
of it replaced by those of other models; the parts stand in the file.
"""
import json

from tokenizers import Tokenizer

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = dict(BYTES, use_regex=True)


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def token(id, content, special):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}


base = json.load(open("../../../models/tales-falcon/tokenizer.json"))
KING = base["model"]["vocab"]["king"]
END = token(0, "<|endoftext|>", True)
VARIANTS = {
    "tales-falcon": {},
    "gpt2": {"pre_tokenizer": GPT2},
    "falcon-7b": {"pre_tokenizer": sequence(
        {"type": "Punctuation", "behavior": "Contiguous"}, GPT2,
        {"type": "Digits", "individual_digits": False},
        split({"Regex": "[0-9][0-9][0-9]"}, "Isolated"))},
    "llama3": {"pre_tokenizer": sequence(split({"Regex": LLAMA3}, "Isolated"), BYTES),
               "ignore_merges": True,
               "post_processor": {"type": "Sequence", "processors": [
                   {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                   {"type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                               {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0],
                                                         "tokens": ["<|endoftext|>"]}}}]}},
    "digits": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True},
                                         {"type": "Punctuation", "behavior": "Isolated"}, GPT2)},
    "removed": {"pre_tokenizer": sequence(split({"Regex": r"\s+"}, "Removed"), BYTES)},
    "previous": {"pre_tokenizer": sequence(split({"String": " "}, "MergedWithPrevious"), BYTES)},
    "next": {"pre_tokenizer": sequence(split({"String": " "}, "MergedWithNext"), BYTES)},
    "inverted": {"pre_tokenizer": sequence(split({"Regex": r"\p{L}+"}, "Removed", True), BYTES)},
    "whole": {"pre_tokenizer": BYTES},
    # "king" is in the vocabulary already, and keeps its id.
    "added": {"added_tokens": [END, token(KING, "king", False), token(4096, "kingdom", False),
                               token(4097, "  ", False), token(4098, "a.b*", False)]},
}

TEXTS = [
    "", "Once upon a time there was a king who had three daughters", "a", " ", "  ", "   three spaces first",
    "two  inside", "trailing ", "trailing two  ", " one", "\n", "\n\n  The end.\n \n", "tab\there\r\n\r\nand there",
    "the king's kingdom, wasn't; THE KING'S, we'll they've I'm he'd you're", "\u017f '\u017f 'S",
    "ends.Then--(more)!? ... \"q\" #1 $2 50% a_b x^2 ~y `z` a+b=c <d> |e| a.b* a.b**",
    "1 12 123 1234 12345 1234567 3.14159 1,000,000 a1b22c333 \u00b2\u00b3\u00bd \u0661\u0662\u0663 \u2167 \u2460",
    "Gr\u00fc\u00dfe aus K\u00f6ln, na\u00efve caf\u00e9, \u00c6r\u00f8sk\u00f8bing", "e\u0301 combining, A\u030a\u0323 twice",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "\u043f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f3f3\ufe0f\u200d\U0001f308",
    "nbsp\u00a0\u00a0x em\u2003 ideo\u3000 nel\u0085x ls\u2028 ps\u2029 ogham\u1680 vt\x0b ff\x0c fs\x1c us\x1f",
    "\u200b\u200d\ufeff zero width", "\U0010ffff\U00020000", "\x00nul\x00inside\x00", "\x01\x7f\x80\xff\xad",
    "\u00ab\u00bb \u201cquotes\u201d \u2018x\u2019 \u00bf\u00a1 \u00a7\u00b6 \u20ac\u00a3 \u2014 \u3001\u3002 \u00d7\u00f7",
    "a" * 60, "ab" * 40 + " " * 30 + "x", "def f(x):\n    if x > 0:\n\treturn x ** 2\n",
    "http://example.org/a?b=c&d=%20e#f", "CamelCaseWordsAndSHOUTING", "\u0120king \u0100\u0142", "king kingdom kingdoms  kings   k",
]


def main():
    goldens = {}
    for name, parts in VARIANTS.items():
        file = json.loads(json.dumps(base))
        for key, part in parts.items():
            (file["model"] if key == "ignore_merges" else file)[key] = part
        oracle = Tokenizer.from_str(json.dumps(file))
        goldens[name] = {"parts": parts, "cases": [
            {"text": text, "ids": (ids := oracle.encode(text).ids),
             "decoded": oracle.decode(ids, skip_special_tokens=True)} for text in TEXTS]}
    with open("bpe_goldens.json", "w") as out:
        json.dump({"made_by": "make_bpe_goldens.py", "variants": goldens}, out, indent=0)
        out.write("\n")


if __name__ == "__main__":
    main()
