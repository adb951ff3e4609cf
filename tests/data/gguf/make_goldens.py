#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files of this folder, with seeds:

    python3 make_goldens.py        (gguf 0.19.0, numpy 2.4.6, torch 2.15.0, transformers 5.17.0,
                                    tokenizers 0.23.3)

blocks.json   for each quantized type: random blocks, and their values as the gguf package reads
              them (hexadecimal, little-endian)
tiny.gguf     a random Llama of one layer, written by the gguf package; every matrix has another
              quantized type, q and k are permuted as llama.cpp's converter does it
tiny.json     what Transformers computes with tiny.gguf: greedy ids and the first logits (fp32); and
              the ids of a few texts from the tokenizers library, told what tiny.gguf says (not read
              by Transformers: its GGUF reader leaves out user-defined tokens, and makes of bytes
              that have no token the unknown token; llama.cpp and SmolLM2's own tokenizer.json drop
              them)
"""

import json
import pathlib

import gguf
import numpy as np
import tokenizers
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
BLOCK_TYPES = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K]
# Where the f16 numbers of a block are, in bytes.
HALVES = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
          Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def random_blocks(rng, kind, rows, columns, scale):
    """Random bytes [rows, ...] of `kind`, whose f16 numbers are at most `scale`."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = rng.uniform(-scale, scale, len(blocks)).astype(np.float16)
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, columns // values * size)


def write_blocks():
    rng = np.random.default_rng(10)
    golden = {}
    for kind in BLOCK_TYPES:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random_blocks(rng, kind, 6, values, 2.0)
        blocks[0, :] = 0xFF  # every bit of the codes
        for at in HALVES[kind]:
            blocks[0, at:at + 2] = np.frombuffer(np.float16(6e-8).tobytes(), np.uint8)  # subnormal
            blocks[1, at:at + 2] = np.frombuffer(np.float16(-65504).tobytes(), np.uint8)
        floats = gguf.quants.dequantize(blocks, kind).astype("<f4")
        golden[kind.name] = {"blocks": blocks.tobytes().hex(), "values": floats.tobytes().hex()}
    (HERE / "blocks.json").write_text(json.dumps(golden, indent=1) + "\n")


HIDDEN, HEADS, KV_HEADS, FFN = 256, 4, 2, 256


def permuted(rows, heads):
    """The order of q's and k's rows in GGUF: of each head the pairs that turn together."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def byte_characters():
    visible = [b for b in range(256) if 0x21 <= b <= 0x7E or (b >= 0xA1 and b != 0xAD)]
    others = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(others)}


def vocabulary():
    """Tokens, types and merges of a small byte-level BPE."""
    alphabet = [c for b, c in byte_characters().items() if b not in (4, 0x98)]  # SmolLM2 has holes too
    merges = ["h e", "Ġ t", "Ġt he", "i n", "Ġ a", "o n", "i t", "r e", "l l", "he ll", "hell o", "Ã ©"]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = specials + alphabet + [m.replace(" ", "") for m in merges] + ["<tool>"]
    types = [3] * len(specials) + [1] * (len(alphabet) + len(merges)) + [4]
    return tokens, types, merges


def write_tiny():
    rng = np.random.default_rng(10)
    writer = gguf.GGUFWriter(HERE / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    tokens, types, merges = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    def matrix(name, kind, rows, columns, heads=0):
        scale = {Type.Q8_0: 6e-4, Type.Q6_K: 3e-5, Type.Q5_K: 1e-4, Type.Q4_K: 2e-4}.get(kind, 0.01)
        data = random_blocks(rng, kind, rows, columns, scale)
        if heads:
            data = data[permuted(rows, heads)]
        writer.add_tensor(name, data, raw_dtype=kind)

    kv = HIDDEN // HEADS * KV_HEADS
    matrix("token_embd.weight", Type.Q8_0, len(tokens), HIDDEN)
    matrix("blk.0.attn_q.weight", Type.Q4_K, HIDDEN, HIDDEN, HEADS)
    matrix("blk.0.attn_k.weight", Type.Q5_K, kv, HIDDEN, KV_HEADS)
    matrix("blk.0.attn_v.weight", Type.Q6_K, kv, HIDDEN)
    matrix("blk.0.attn_output.weight", Type.Q4_0, HIDDEN, HIDDEN)
    matrix("blk.0.ffn_gate.weight", Type.Q5_0, FFN, HIDDEN)
    matrix("blk.0.ffn_up.weight", Type.Q5_1, FFN, HIDDEN)
    matrix("blk.0.ffn_down.weight", Type.Q4_1, HIDDEN, FFN)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(name + ".weight", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TEXTS = ["hello the lion", "in 1984 it rained", "  two  spaces\n\nand lines ", "caf\u00e9 \u732b \U0001f600",
         "a<tool>b", "don't, we'll", "he\x04llo \U0001f618", ""]


def make_tokenizer():
    tokens, types, merges = vocabulary()
    vocab = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    # Added in the order of their ids, which then go on behind the vocabulary's: map them back.
    added = [i for i, kind in enumerate(types) if kind != 1]
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    tool = tokenizer.token_to_id("<tool>")
    return lambda text: [added[-1] if i == tool else i for i in tokenizer.encode(text).ids]


def write_tiny_golden():
    model = AutoModelForCausalLM.from_pretrained(HERE, gguf_file="tiny.gguf", dtype=torch.float32)
    encode = make_tokenizer()
    prompt = encode("hello the lion in it")
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
        ids = list(prompt)
        margins = []
        for _ in range(24):
            last = model(torch.tensor([ids])).logits[0, -1]
            best = torch.topk(last, 2)
            margins.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    print("smallest margin of a greedy step:", min(margins))
    golden = {"prompt": prompt, "greedy": ids[len(prompt):], "logits": [round(float(x), 6) for x in logits],
              "texts": [[text, encode(text)] for text in TEXTS]}
    (HERE / "tiny.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    write_blocks()
    write_tiny()
    write_tiny_golden()
