#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""2,000 streamed completions against a running server, with random lengths, a third of them cut by the
client; then the server must be empty and its counters equal to what the clients saw.

    tests/e2e/storm.py [--port 8000] [--requests 2000] [--connections 64] [--seed 1]

Standard library only. Exits with 1 and says why where a sum does not hold."""

import argparse
import asyncio
import json
import random
import sys
import time


def metric(text, name, label=""):
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name) and line[len(name)] in "{ " and label in line:
            total += float(line.rsplit(" ", 1)[1])
    return total


async def get(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    body = await reader.read()
    writer.close()
    return body.split(b"\r\n\r\n", 1)[1].decode()


async def one(port, rng, counts):
    """One request on a connection of its own; maybe cut after some events."""
    length = rng.randint(1, 120)
    body = json.dumps({
        "prompt": [rng.randint(3, 4000) for _ in range(rng.randint(1, 700))],
        "max_tokens": length, "ignore_eos": True, "stream": True,
        "temperature": rng.choice([0, 0.7, 1.2]), "seed": rng.randint(0, 1 << 30),
        "stream_options": {"include_usage": True}}).encode()
    cut_after = rng.randint(0, length) if rng.random() < 1 / 3 else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body)
    events = 0
    async for line in reader:
        if line.startswith(b"HTTP/") and b" 200 " not in line:
            raise AssertionError(f"unexpected reply: {line!r}")
        if not line.startswith(b"data: "):
            continue
        events += 1
        if cut_after is not None and events > cut_after:
            counts["cut"] += 1
            writer.close()
            return
        data = line[6:].strip()
        if data == b"[DONE]":
            break
        usage = json.loads(data).get("usage")
        if usage:
            if usage["completion_tokens"] != length:
                raise AssertionError(f"asked for {length} tokens, usage says {usage}")
            counts["tokens"] += usage["completion_tokens"]
    counts["whole"] += 1
    writer.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    counts = {"whole": 0, "cut": 0, "tokens": 0}
    left = iter(range(args.requests))
    begin = time.time()

    async def worker():
        for _ in left:
            await one(args.port, rng, counts)

    await asyncio.gather(*(worker() for _ in range(args.connections)))
    took = time.time() - begin
    text = ""
    for _ in range(100):  # the last cuts are noticed within a step
        text = await get(args.port, "/metrics")
        if not any(metric(text, f"kivi:{name}") for name in
                   ("num_requests_running", "num_requests_waiting", "kv_cache_bytes")):
            break
        await asyncio.sleep(0.05)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_bytes"):
        if metric(text, f"kivi:{name}"):
            sys.exit(f"kivi:{name} is {metric(text, f'kivi:{name}')}, expected 0")
    finished = metric(text, "kivi:request_success_total", 'finished_reason="length"')
    if finished < counts["whole"]:
        sys.exit(f"{counts['whole']} requests ended whole, the server counts {finished:.0f}")
    if json.loads(await get(args.port, "/v1/models"))["object"] != "list":
        sys.exit("the server does not answer any more")
    print(f"{counts['whole']} whole, {counts['cut']} cut by the client, {counts['tokens']} tokens in "
          f"{took:.1f} s; nothing is held")


asyncio.run(main())
