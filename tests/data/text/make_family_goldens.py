#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes families/*.json (small tokenizers) and family_goldens.json. Run by hand, from here:

    python3 make_family_goldens.py      (tokenizers 0.23.3)

Each tokenizer is trained on a few tales and has the parts, in the very configuration, of one family's
tokenizer.json: normalizer, pre-tokenizer, model options, decoder, post-processor, added tokens. The
goldens are the ids of the texts below, once with special tokens as text (encode) and once parsed
(special), with what they decode to. Of long texts the ids are stored as their number and a hash.
"""
import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from make_bpe_goldens import TEXTS

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL
SAMPLE = open("../heldout_sample.txt", encoding="utf-8").read()
MORE = "\n".join(t for t in TEXTS if t.isprintable()) * 3


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | options


def sequence(kind, *parts):
    return {"type": "Sequence", kind: list(parts)}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def token(id, content, special=True, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special} | flags


def template(bos):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}}}


def trained(alphabet, pieces, size):
    """vocab and merges of a BPE over pieces of the sample."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pieces
    tokenizer.train_from_iterator(
        [SAMPLE, MORE], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


BYTES = trained(sorted(pre_tokenizers.ByteLevel.alphabet()), pre_tokenizers.ByteLevel(add_prefix_space=False), 700)
SPACES = trained([], pre_tokenizers.Metaspace(prepend_scheme="never"), 500)


def file(names, merges, **parts):
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {name: i for i, name in enumerate(names)}, "merges": merges} | parts.pop("model", {})
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model} | parts


def bytes_file(pre_tokenizer, specials, **parts):
    names, merges = BYTES
    added = [token(len(names) + i, s) if isinstance(s, str) else token(len(names) + i, **s)
             for i, s in enumerate(specials)]
    return file(names, merges, pre_tokenizer=pre_tokenizer, added_tokens=added, decoder=byte_level(), **parts)


def spaces_file(**parts):
    """Of the SentencePiece kind: unknown, BOS, EOS, bytes, then what was learnt."""
    names, merges = SPACES
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + names
    decoders = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return file(names, merges, model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
                added_tokens=[token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")] +
                [t | {"id": len(names) + i} for i, t in enumerate(parts.pop("more", []))],
                decoder=sequence("decoders", *decoders), post_processor=template("<s>") | {
                    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}, **parts)


def bos_at(tokenizer, bos):
    """A template's ids are those of the file."""
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    tokenizer["post_processor"] = sequence("processors", byte_level(), template(bos))
    tokenizer["post_processor"]["processors"][1]["special_tokens"][bos]["ids"] = [ids[bos]]
    return tokenizer


LEGACY = sequence("normalizers", {"type": "Prepend", "prepend": "\u2581"},
                  {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
FAMILIES = {
    "llama3": bos_at(bytes_file(
        sequence("pretokenizers", split(LLAMA3), byte_level(use_regex=False)),
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        model={"ignore_merges": True}), "<|begin_of_text|>"),
    "qwen2": bytes_file(
        sequence("pretokenizers", split(QWEN2), byte_level(use_regex=False, trim_offsets=False)),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", {"content": "<tool_call>", "special": False,
                                                         "normalized": False}],
        normalizer={"type": "NFC"}, post_processor=byte_level(use_regex=False)),
    "gpt2": bytes_file(byte_level(), ["<|endoftext|>"], post_processor=byte_level(trim_offsets=False)),
    "smollm": bytes_file(sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level()),
                         ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "falcon": bytes_file(
        sequence("pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(),
                 {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")),
        [">>TITLE<<", ">>ABSTRACT<<", "<|endoftext|>"]),
    "llama2": spaces_file(normalizer=LEGACY),
    "mistral-v0.3": spaces_file(
        pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        more=[token(None, "[INST]"), token(None, "[/INST]")]),
    "metaspace-split": spaces_file(
        pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}),
    # Every flag of an added token, special or not, in the text as it came or normalized.
    "flags": spaces_file(normalizer=LEGACY, more=[
        token(None, "<mask>", lstrip=True), token(None, "<sep>", rstrip=True),
        token(None, "<both>", lstrip=True, rstrip=True), token(None, "<word>", single_word=True),
        token(None, "king", special=False, single_word=True, normalized=False),
        token(None, "a king", special=False), token(None, "<<", special=False, lstrip=True, normalized=False),
        token(None, "<<<", special=False, normalized=False), token(None, "\u00e9t\u00e9", special=False)]),
    "prefix-space": bytes_file(byte_level(add_prefix_space=True), ["<|endoftext|>"]),
}

SPECIAL_TEXTS = [
    "<s>[INST] Hi there [/INST] Hello</s>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "a<|endoftext|>b <|endoftext|> c",
    ">>TITLE<<x>>ABSTRACT<< <tool_call>{}", "<unk> <s> </s>", "x <mask> y<mask>z  <mask>", "x<sep>  y <sep>\n\nz",
    "a  <both>\t b<both>", "<word>a <word> a<word> _<word>_ <word>", "a king, a kingdom, the king's king_ a  king",
    "<<< << x<<  <<y <<<<", "l'\u00e9t\u00e9 \u00e9t\u00e9s l'e\u0301te\u0301", "<s", "<s><s>  <s> x", "king",
    "\u1100\u1161\u11a8 \u212b \u0344 \u0958 \u2126", "<0x0A> <0xFF>\n", "<|im_start|", "</s>\u00a0</s>\u3000x",
]
LONG = {
    "letters": "".join(chr(97 + (i * i + i // 7) % 26) for i in range(100_000)),
    "one letter": "a" * 100_000,
    "spaces": " " * 5_000 + "x",
    "newlines": "\n" * 5_000,
    "cjk": "\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 4_000,
    "tales": SAMPLE,
}


def hashed(ids):
    value = 0xCBF29CE484222325
    for i in ids:
        value = (value ^ i) * 0x100000001B3 % 2**64
    return [len(ids), value]


goldens = {}
for name, description in FAMILIES.items():
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    with open(f"families/{name}.json", "w", encoding="utf-8") as out:
        out.write(text + "\n")
    oracle = Tokenizer.from_str(text)
    cases = []
    for x in TEXTS + SPECIAL_TEXTS:
        case = [x]
        for as_text in (True, False):
            oracle.encode_special_tokens = as_text
            ids = oracle.encode(x).ids
            case += [ids, oracle.decode(ids, skip_special_tokens=True)]
        cases.append(case[:3] if case[1:3] == case[3:] else case)
    oracle.encode_special_tokens = True
    goldens[name] = {"cases": cases, "long": {k: hashed(oracle.encode(x).ids) for k, x in LONG.items()}}
with open("family_goldens.json", "w") as out:
    json.dump({"made_by": "make_family_goldens.py"} | goldens, out, separators=(",", ":"))
    out.write("\n")
