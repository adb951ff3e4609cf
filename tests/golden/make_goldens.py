#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of tests/golden. Run by hand, from here:

    python3 make_goldens.py [NAME...]      (transformers 5.17.0 or later, torch 2.15.0 on the CPU)

Each is a small model with random weights of one family, with shapes that are awkward on purpose, and
what Hugging Face Transformers makes of a prompt in float32: sixteen greedy tokens, their log
probabilities, and the log probability of every token after the prompt. Weights are not stored: they
are a function of the tensor's name (weight() here, golden_models.h there) and have at most 8
significant bits, so that float32, float16 and bfloat16 checkpoints hold the same numbers.

The prompt is chosen among random ones so that the best token always leads by GAP: what is smaller
is decided by the order of additions, which is nobody's to promise.
"""
import json
import math
import sys

import numpy
import sentencepiece
import torch
import transformers
from transformers import (FalconConfig, LlamaConfig, MinistralConfig, MistralConfig, Phi3Config, Qwen2Config,
                          Qwen3Config)

TOKENS = 16
GAP = 0.1


def weight(name, shape, exponent):
    """Element i of tensor `name`: the top byte of splitmix64(fnv1a(name) + i), as -128..127, times
    2^exponent. exponent "norm": 1 + (that byte's low 6 bits - 32) / 128."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with numpy.errstate(over="ignore"):
        x = numpy.uint64(seed) + numpy.arange(math.prod(shape), dtype=numpy.uint64)
        x = (x + numpy.uint64(0x9E3779B97F4A7C15))
        x = (x ^ x >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
        x = x ^ x >> numpy.uint64(31)
    byte = (x >> numpy.uint64(56)).astype(numpy.int64)
    if exponent == "norm":
        values = 1 + (byte % 64 - 32) / 128
    else:
        values = (byte - 128) * 2.0**exponent
    return torch.tensor(values.astype(numpy.float32)).reshape(shape)


def exponent_of(name, shape, tied):
    """So that numbers keep their size through the layers, attention is not uniform and logits are apart."""
    if len(shape) == 1:
        return "norm" if name.endswith("weight") else -8
    gain = 1.0
    if any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "query_key_value")):
        gain = 1.5
    if any(part in name for part in ("o_proj", "down_proj", "dense.", "4h_to_h")):
        gain = 16.0 if tied else 4.0  # a tied model must not just repeat its last token
    if "lm_head" in name or (tied and "embed" in name):
        gain = 4.0
    elif "embed" in name:
        return -6
    return -round(math.log2(74 * math.sqrt(shape[1]) / gain))


def rope(kind, **parameters):
    return {"rope_type": kind, "rope_theta": 10000.0, **parameters}


def longrope(pairs, **parameters):
    return rope("longrope", short_factor=[1 + i / 64 for i in range(pairs)],
                long_factor=[1 + i * i / 128 for i in range(pairs)], **parameters)


# name: config, dtype of the checkpoint, generation of config.json, prompt length, shards
BASE = dict(num_hidden_layers=2, hidden_size=48, intermediate_size=80, vocab_size=263, bos_token_id=1,
            eos_token_id=2, max_position_embeddings=256)
MODELS = {
    "llama2-mha": (LlamaConfig(**BASE | dict(num_attention_heads=2, num_key_value_heads=2, hidden_size=128)),
                   "float16", "old", 37, 1),
    "llama3.1-gqa2": (LlamaConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=2, head_dim=128, vocab_size=311,
        rope_parameters=rope("llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32))),
        "bfloat16", "old", 90, 3),
    "llama3.2-tied": (LlamaConfig(**BASE | dict(
        num_attention_heads=6, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        rope_parameters=rope("llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=64))),
        "bfloat16", "new", 77, 1),
    "llama-linear-gqa3": (LlamaConfig(**BASE | dict(
        num_attention_heads=3, num_key_value_heads=1, head_dim=64, max_position_embeddings=40,
        rope_parameters=rope("linear", factor=4.0))), "float32", "old", 65, 1),
    "llama-dynamic-gqa4": (LlamaConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=96, max_position_embeddings=48,
        rope_parameters=rope("dynamic", factor=4.0))), "bfloat16", "new", 70, 1),
    "llama-dynamic-growing": (LlamaConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, max_position_embeddings=48,
        rope_parameters=rope("dynamic", factor=2.0))), "float32", "old", 41, 2),
    "llama-yarn-gqa8": (LlamaConfig(**BASE | dict(
        num_attention_heads=8, num_key_value_heads=1, head_dim=64, max_position_embeddings=256,
        rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=32))),
        "bfloat16", "new", 100, 1),
    "llama-yarn-options": (LlamaConfig(**BASE | dict(
        num_attention_heads=2, num_key_value_heads=2, head_dim=96, max_position_embeddings=160,
        rope_parameters=rope("yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=40,
                             beta_fast=20.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.5,
                             truncate=False))), "float16", "new", 83, 1),
    "llama-biases": (LlamaConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=2, head_dim=80, vocab_size=257, attention_bias=True,
        mlp_bias=True)), "bfloat16", "new", 33, 1),
    "llama-71-heads": (LlamaConfig(**BASE | dict(
        num_attention_heads=71, num_key_value_heads=1, hidden_size=568, head_dim=64, num_hidden_layers=1)),
        "bfloat16", "new", 67, 1),
    "smollm2": (LlamaConfig(**BASE | dict(
        num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=96,
        num_hidden_layers=1, tie_word_embeddings=True,
        rope_parameters=rope("default", rope_theta=100000.0))), "bfloat16", "old", 29, 1),
    "falcon3": (LlamaConfig(**BASE | dict(
        num_attention_heads=3, num_key_value_heads=1, head_dim=256,
        rope_parameters=rope("default", rope_theta=1000042.0))), "bfloat16", "old", 40, 1),
    "mistral-v0.1": (MistralConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, sliding_window=24)),
        "bfloat16", "old", 71, 1),
    "mistral-v0.3": (MistralConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=2, hidden_size=256, sliding_window=None,
        rope_parameters=rope("default", rope_theta=1e6))), "bfloat16", "old", 71, 2),
    "mistral-nemo": (MistralConfig(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=1, hidden_size=80, head_dim=128, sliding_window=None,
        rope_parameters=rope("default", rope_theta=1e6))), "bfloat16", "new", 45, 1),
    "qwen2": (Qwen2Config(**BASE | dict(
        num_attention_heads=6, num_key_value_heads=2, hidden_size=384, num_hidden_layers=1,
        tie_word_embeddings=True, use_sliding_window=False, sliding_window=16, max_window_layers=1,
        rope_parameters=rope("default", rope_theta=1e6))), "bfloat16", "old", 50, 1),
    "qwen2-yarn-window": (Qwen2Config(**BASE | dict(
        num_attention_heads=2, num_key_value_heads=1, hidden_size=128, max_position_embeddings=40,
        use_sliding_window=True, sliding_window=30, max_window_layers=0,
        rope_parameters=rope("yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=40))),
        "float16", "new", 90, 1),
    "qwen3": (Qwen3Config(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=2, hidden_size=80, head_dim=128, tie_word_embeddings=True,
        rope_parameters=rope("default", rope_theta=1e6))), "bfloat16", "old", 60, 1),
    "qwen3-yarn-biases": (Qwen3Config(**BASE | dict(
        num_attention_heads=6, num_key_value_heads=2, head_dim=64, attention_bias=True,
        max_position_embeddings=40,
        rope_parameters=rope("yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=40))),
        "float32", "new", 90, 2),
    "ministral-mixed": (MinistralConfig(**BASE | dict(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=64, sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])), "bfloat16", "new", 71, 1),
    "qwen2-last-layers": (Qwen2Config(**BASE | dict(
        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, hidden_size=128,
        use_sliding_window=True, sliding_window=20, max_window_layers=2)), "float16", "old", 90, 1),
    "qwen3-mixed": (Qwen3Config(**BASE | dict(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
        use_sliding_window=True, sliding_window=17,
        layer_types=["full_attention", "sliding_attention", "full_attention"])), "bfloat16", "new", 80, 2),
    "phi3-long": (Phi3Config(**BASE | dict(
        num_attention_heads=2, num_key_value_heads=2, hidden_size=192, pad_token_id=0,
        original_max_position_embeddings=32, rope_parameters=longrope(48))), "bfloat16", "old", 70, 2),
    "phi3-short": (Phi3Config(**BASE | dict(
        num_attention_heads=4, num_key_value_heads=2, hidden_size=256, pad_token_id=0, sliding_window=24,
        original_max_position_embeddings=128, rope_parameters=longrope(32))), "float16", "new", 60, 1),
    "phi3-partial": (Phi3Config(**BASE | dict(
        num_attention_heads=3, num_key_value_heads=1, hidden_size=384, pad_token_id=0,
        tie_word_embeddings=True, original_max_position_embeddings=48,
        rope_parameters=longrope(48, partial_rotary_factor=0.75))), "bfloat16", "new", 60, 1),
    "falcon-7b": (FalconConfig(
        num_hidden_layers=1, num_attention_heads=71, num_kv_heads=71, hidden_size=1136, ffn_hidden_size=96,
        vocab_size=263, multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False,
        bias=False, bos_token_id=11, eos_token_id=11, max_position_embeddings=256), "bfloat16", "old", 50, 1),
    "falcon-40b": (FalconConfig(
        num_hidden_layers=2, num_attention_heads=8, num_kv_heads=2, hidden_size=512, ffn_hidden_size=112,
        vocab_size=263, new_decoder_architecture=True, alibi=False, bias=False, bos_token_id=11,
        eos_token_id=11, max_position_embeddings=256), "bfloat16", "old", 50, 2),
    "falcon-11b": (FalconConfig(
        num_hidden_layers=2, num_attention_heads=4, num_kv_heads=1, hidden_size=256, ffn_hidden_size=112,
        vocab_size=263, new_decoder_architecture=True, num_ln_in_parallel_attn=1, tie_word_embeddings=False,
        bias=False, bos_token_id=11, eos_token_id=11, max_position_embeddings=256), "bfloat16", "new", 50, 1),
    "falcon-sequential": (FalconConfig(
        num_hidden_layers=2, num_attention_heads=3, hidden_size=192, ffn_hidden_size=112, vocab_size=263,
        multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=False, bias=True,
        bos_token_id=11, eos_token_id=11, max_position_embeddings=256), "float32", "new", 50, 1),
}


def config_json(config, dtype, generation, architecture):
    """config.json as save_pretrained of Transformers 5 writes it ("new") or as version 4 did ("old")."""
    document = config.to_diff_dict()
    document |= {"architectures": [architecture], "dtype": dtype}
    if config.model_type in ("mistral", "ministral"):
        document["sliding_window"] = config.sliding_window
    if config.model_type in ("qwen2", "qwen3"):
        document |= {"use_sliding_window": config.use_sliding_window,
                     "sliding_window": config.sliding_window or 16}
    if generation == "old":
        document["torch_dtype"] = document.pop("dtype")
        parameters = dict(document.pop("rope_parameters", None) or {})
        document["rope_theta"] = parameters.pop("rope_theta", 10000.0)
        kind = parameters.get("rope_type", "default")
        if kind != "default":
            if kind != "llama3":
                parameters["type"] = parameters.pop("rope_type")
            if kind == "longrope":  # the trained context stands outside
                document["partial_rotary_factor"] = parameters.pop("partial_rotary_factor", 1.0)
                parameters.pop("original_max_position_embeddings", None)
            document["rope_scaling"] = parameters
        document.pop("layer_types", None)
    return document


@torch.no_grad()
def run(model, prompt):
    """Greedy ids, their log probabilities, all log probabilities after the prompt, the smallest lead."""
    ids, logprobs, first, gap, past = [], [], None, 1e9, None
    # Dynamic scaling remembers the longest sequence it has seen: each prompt comes to a fresh one.
    base = model.get_decoder()
    base.rotary_emb = type(base.rotary_emb)(model.config)
    step = torch.tensor([prompt])
    for _ in range(TOKENS):
        out = model(input_ids=step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        row = torch.log_softmax(out.logits[0, -1].double(), -1)
        first = row if first is None else first
        best = torch.topk(row, 2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
        logprobs.append(float(best.values[0]))
        step = torch.tensor([[ids[-1]]])
    return ids, logprobs, first, gap


def make(name):
    config, dtype, generation, length, shards = MODELS[name]
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager").eval()
    tied = model.config.tie_word_embeddings
    tensors = []
    state = {}
    for tensor, value in model.state_dict().items():
        if tied and tensor == "lm_head.weight":
            continue
        exponent = exponent_of(tensor, value.shape, tied)
        tensors.append([tensor, list(value.shape), exponent])
        state[tensor] = weight(tensor, value.shape, exponent)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(m == "lm_head.weight" for m in missing), (missing, unexpected)
    model.tie_weights()
    best = None
    for attempt in range(1000):
        prompt = numpy.random.default_rng(attempt).integers(0, config.vocab_size, length).tolist()
        result = run(model, prompt)
        if best is None or result[3] > best[1][3]:
            best = prompt, result
        if result[3] > GAP:
            break
    prompt, (ids, logprobs, first, gap) = best
    print(f"{name}: lead {gap:.3f} after {attempt + 1} prompts, {len(set(ids))} different ids", flush=True)
    golden = {
        "made_by": f"make_goldens.py, transformers {transformers.__version__}, torch {torch.__version__}",
        "config": config_json(config, dtype, generation, type(model).__name__),
        "shards": shards, "tensors": tensors, "prompt": prompt, "greedy": ids, "lead": round(gap, 4),
        "greedy_logprobs": [round(x, 5) for x in logprobs],
        "first_logprobs": [round(float(x), 5) for x in first],
    }
    with open(name + ".json", "w") as out:
        out.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items()) + "\n}\n")


@torch.no_grad()
def make_window():
    """tales-mistral on 300 tokens of a tale, beyond its window of 256: greedy ids and by how much each
    leads. tests/data, because its weights are those of the repository's model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        "../../models/tales-mistral", dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = sentencepiece.SentencePieceProcessor("../../models/tales-mistral/tokenizer.model")
    text = open("../data/heldout_sample.txt", encoding="utf-8").read()
    prompt = [1] + tokenizer.encode(text)[:299]
    ids, leads, step, past = [], [], torch.tensor([prompt]), None
    for _ in range(64):
        out = model(input_ids=step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        best = torch.topk(out.logits[0, -1], 2)
        ids.append(int(best.indices[0]))
        leads.append(round(float(best.values[0] - best.values[1]), 4))
        step = torch.tensor([[ids[-1]]])
    with open("../data/tales_mistral_window.json", "w") as out:
        json.dump({"made_by": "tests/golden/make_goldens.py", "prompt": prompt, "greedy": ids,
                   "leads": leads}, out)
        out.write("\n")
    print(f"tales-mistral: smallest lead {min(leads)}")


for chosen in sys.argv[1:] or [*MODELS, "window"]:
    make_window() if chosen == "window" else make(chosen)
