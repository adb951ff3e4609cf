#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Throughput of Hugging Face Transformers with its 16-bit cache: the baseline of the paper's figure 5.

    python3 tools/baselines/transformers_throughput.py configs/shapes/llama-2-7b \\
        --batch-sizes 1,64,128,192,224 --json transformers-fp16.json

Static batches of equal prompts, greedy, end of sequence ignored: `prompt-len` + `output-len` tokens a
sequence, as `kivi bench throughput` runs them. MODEL is a folder with config.json; its weights are read
if it has any, else they are random. A batch that does not fit in memory ends the list. Output tokens/s
count prompt and output time, as the paper does. Needs torch and transformers; no test runs this.
"""

import argparse
import json
import pathlib
import time

import torch
import transformers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with config.json")
    parser.add_argument("--batch-sizes", default="1,64,128,192,224", help="with commas")
    parser.add_argument("--prompt-len", type=int, default=161, help="tokens")
    parser.add_argument("--output-len", type=int, default=338, help="tokens")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=1, help="timed runs a batch; the best counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args()


def load(args):
    """(model, were its weights read?)"""
    dtype = getattr(torch, args.dtype)
    if any(pathlib.Path(args.model).glob("*.safetensors")):
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        return model.to(args.device).eval(), True
    config = transformers.AutoConfig.from_pretrained(args.model)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    return model.eval(), False


def synchronize(args):
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def generate(model, prompts, args, output_len):
    """Seconds for exactly output_len tokens a prompt."""
    synchronize(args)
    begin = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
                             min_new_tokens=output_len, max_new_tokens=output_len,
                             eos_token_id=None, pad_token_id=0)
    synchronize(args)
    assert out.shape[1] == prompts.shape[1] + output_len, out.shape
    return time.perf_counter() - begin


def run(model, batch, args):
    generator = torch.Generator().manual_seed(args.seed)
    prompts = torch.randint(3, model.config.vocab_size, (batch, args.prompt_len),
                            generator=generator).to(args.device)
    cuda = args.device.startswith("cuda")
    generate(model, prompts[:1], args, min(4, args.output_len))  # warm-up
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = min(generate(model, prompts, args, args.output_len) for _ in range(args.repeat))
    return {"batch_size": batch, "duration": seconds,
            "output_throughput": batch * args.output_len / seconds,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None}


def main():
    args = arguments()
    batches = [int(word) for word in args.batch_sizes.split(",")]
    model, read = load(args)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    print(f"Transformers {transformers.__version__}, torch {torch.__version__}, {device}, {args.dtype}, "
          f"{'weights read' if read else 'random weights'}, {args.prompt_len} + {args.output_len} tokens")
    runs = []
    for batch in batches:
        try:
            runs.append(run(model, batch, args))
        except torch.OutOfMemoryError:
            print(f"batch {batch}: out of memory")
            break
        peak = runs[-1]["peak_memory_bytes"]
        print(f"batch {batch}: {runs[-1]['output_throughput']:.1f} output tokens/s"
              + (f", peak {peak / 2**30:.1f} GiB" if peak else ""), flush=True)
        if args.json:  # after each batch: the largest ones take minutes, and a run may be cut
            document = {"transformers": transformers.__version__, "torch": torch.__version__,
                        "device": device, "model": args.model, "dtype": args.dtype,
                        "random_weights": not read, "prompt_len": args.prompt_len,
                        "output_len": args.output_len, "runs": runs}
            pathlib.Path(args.json).write_text(json.dumps(document, indent=1) + "\n",
                                               encoding="utf-8")


if __name__ == "__main__":
    main()
