#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tales_llama_embeddings.json: the final hidden states of tales-llama for a few
prompts, by Hugging Face Transformers in fp32: tests/golden/make_embeddings.py

`last` is the hidden state of the last token, `mean` the mean of all tokens', both behind the last
norm and with length 1. Needs torch, transformers and sentencepiece."""

import json
import pathlib

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = ROOT / "models" / "tales-llama"


def rounded(vector):
    vector = vector / vector.norm()
    return [round(float(x), 6) for x in vector]


def main():
    model = transformers.AutoModel.from_pretrained(SOURCE, dtype=torch.float32)
    model.eval()
    golden = json.loads((SOURCE / "golden.json").read_text())["greedy_ids"]
    # One token; less than a residual; more than one, and more than one chunk of the test.
    prompts = [golden[:1], golden[:9], (golden * 8)[:300]]
    entries = []
    for ids in prompts:
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        entries.append({"ids": ids, "last": rounded(hidden[-1]), "mean": rounded(hidden.mean(0))})
    out = {"made_by": f"tests/golden/make_embeddings.py, transformers {transformers.__version__}",
           "embeddings": entries}
    target = ROOT / "tests" / "data" / "tales_llama_embeddings.json"
    target.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
