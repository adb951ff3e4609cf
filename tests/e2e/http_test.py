#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""HTTP end to end: the real program on loopback, with curl and plain sockets as clients.

    BINARY_UNDER_TEST=build/kivi tests/e2e/http_test.py [-k NAME]
"""

import json
import os
import threading
import time
import unittest

from harness import GREEDY_IDS, PROMPT_IDS, ROOT, TEXT, RawStream, Server, WithServer, text_of


class Http(WithServer):
    def test_health_family_and_version(self):
        for path in ("/health", "/health/live", "/health/ready", "/ping", "/version"):
            self.assertEqual(self.server.get(path).status, 200, path)
        self.assertIn("version", self.server.get("/version").json())

    def test_models_lists_the_model(self):
        models = self.server.get("/v1/models").json()
        self.assertEqual([m["id"] for m in models["data"]], ["tales-llama"])
        self.assertEqual(self.server.get("/v1/models/tales-llama").status, 200)
        self.assertEqual(self.server.get("/v1/models/other").status, 404)

    def test_greedy_text_equals_the_golden_ids(self):
        reply = self.server.complete(prompt=PROMPT_IDS, temperature=0, max_tokens=len(GREEDY_IDS),
                                     return_token_ids=True).json()
        self.assertEqual(reply["choices"][0]["token_ids"], GREEDY_IDS)
        self.assertEqual(reply["usage"]["completion_tokens"], len(GREEDY_IDS))
        self.assertEqual(reply["usage"]["prompt_tokens"], len(PROMPT_IDS))

    def test_embeddings_are_those_of_transformers(self):
        golden = json.loads((ROOT / "tests" / "data" / "tales_llama_embeddings.json").read_text())["embeddings"]
        ids = [entry["ids"] for entry in golden]
        for pooling in ("last", "mean"):
            reply = self.server.post("/v1/embeddings", {"input": ids, "pooling": pooling}).json()
            self.assertEqual(reply["usage"]["prompt_tokens"], sum(map(len, ids)))
            for got, entry in zip(reply["data"], golden):
                worst = max(abs(a - b) for a, b in zip(got["embedding"], entry[pooling], strict=True))
                self.assertLess(worst, 2e-3, (pooling, len(entry["ids"])))
        ranked = self.server.post("/v1/rerank", {"query": TEXT, "documents": ["12 + 30 = 42", TEXT]}).json()["results"]
        self.assertEqual([entry["index"] for entry in ranked], [1, 0])
        self.assertAlmostEqual(ranked[0]["relevance_score"], 1, places=3)

    def test_greedy_text_is_golden_in_a_full_batch(self):
        bodies = [None] * 24

        def one(i):
            other = i % 3 != 0
            bodies[i] = self.server.complete(
                prompt=TEXT * (1 + i % 5) if other else PROMPT_IDS, temperature=1 if other else 0,
                seed=i, max_tokens=len(GREEDY_IDS), ignore_eos=other, return_token_ids=True).json()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(bodies))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for i in range(0, len(bodies), 3):
            self.assertEqual(bodies[i]["choices"][0]["token_ids"], GREEDY_IDS, i)

    def test_a_stream_is_the_same_text_as_no_stream(self):
        asked = dict(prompt=TEXT, temperature=0.8, seed=11, max_tokens=48)
        whole = self.server.complete(**asked).json()
        events = self.server.stream(**asked, stream_options={"include_usage": True})
        self.assertEqual(text_of(events), whole["choices"][0]["text"])
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual(events[-1]["usage"]["completion_tokens"],
                         whole["usage"]["completion_tokens"])
        finish = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
        self.assertEqual(finish, [whole["choices"][0]["finish_reason"]])

    def test_stop_strings_end_the_text_before_them(self):
        free = self.server.complete(prompt=PROMPT_IDS, temperature=0, max_tokens=40).json()
        text = free["choices"][0]["text"]
        stop = text[20:26]
        cut = self.server.complete(prompt=PROMPT_IDS, temperature=0, max_tokens=40,
                                   stop=[stop]).json()["choices"][0]
        self.assertEqual(cut["text"], text[:text.index(stop)])
        self.assertEqual((cut["finish_reason"], cut["stop_reason"]), ("stop", stop))

    def test_tokenize_and_detokenize_are_inverse(self):
        ids = self.server.post("/tokenize", {"prompt": TEXT}).json()["tokens"]
        plain = self.server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False}).json()
        self.assertEqual(ids[1:], plain["tokens"])
        text = self.server.post("/detokenize", {"tokens": plain["tokens"]}).json()["prompt"]
        self.assertEqual(text, TEXT)

    def test_errors_name_what_is_wrong(self):
        ask = self.server.post
        cases = [
            (ask("/v1/completions", "{"), 400, None),
            (ask("/v1/completions", '{"prompt": "x", "temperature": NaN}'), 400, None),
            (ask("/v1/completions", "[" * 5000), 400, None),
            (self.server.complete(prompt="x", temperature=-1), 400, "temperature"),
            (self.server.complete(prompt="x", max_tokens=1.5), 400, "max_tokens"),
            (self.server.complete(prompt="x", top_p="1"), 400, "top_p"),
            (self.server.complete(prompt=[1, 99999]), 400, "prompt"),
            (self.server.complete(prompt=[5] * 4000), 400, "prompt"),
            (self.server.complete(prompt="x", stream_options={"include_usage": True}), 400,
             "stream_options"),
            (self.server.post("/v1/completions", {"model": "other", "prompt": "x"}), 404, "model"),
            (self.server.get("/v1/completions"), 405, None),
            (self.server.get("/nowhere"), 404, None),
            (ask("/v1/completions", b" " * (17 << 20)), 413, None),
        ]
        for reply, status, param in cases:
            self.assertEqual(reply.status, status, reply.body)
            error = reply.json()["error"]
            self.assertTrue(error["message"])
            self.assertIsInstance(error["code"], str)
            if param:
                self.assertEqual(error["param"], param)
        self.assertEqual(self.server.complete(prompt="x", max_tokens=1).status, 200)

    def test_counters_equal_what_clients_count(self):
        self.assertTrue(self.server.wait_idle())
        names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
        before = {name: self.server.metric(name) for name in names}
        counted = dict.fromkeys(names, 0)
        lock = threading.Lock()

        def one(i):
            asked = dict(prompt=TEXT * (i % 3 + 1), max_tokens=5 + i, seed=i, ignore_eos=i % 2 == 0)
            if i % 4 == 0:
                reply = self.server.complete(n=2, **asked).json()
                usage, choices = reply["usage"], 2
            else:
                events = self.server.stream(**asked, stream_options={"include_usage": True},
                                            return_token_ids=True)
                usage, choices = events[-1]["usage"], 1
                ids = [t for e in events for c in e["choices"] for t in c["token_ids"] or []]
                self.assertEqual(len(ids), usage["completion_tokens"])
            with lock:
                counted["prompt_tokens_total"] += usage["prompt_tokens"]
                counted["generation_tokens_total"] += usage["completion_tokens"]
                counted["request_success_total"] += choices

        threads = [threading.Thread(target=one, args=(i,)) for i in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertTrue(self.server.wait_idle())
        for name in names:
            self.assertEqual(self.server.metric(name) - before[name], counted[name], name)

    def test_a_client_that_goes_away_frees_its_request(self):
        self.assertTrue(self.server.wait_idle())
        aborted = self.server.metric("requests_aborted_total")
        stream = RawStream(self.server.port, prompt=TEXT, max_tokens=1900, ignore_eos=True)
        self.assertTrue(stream.read_until(b"data: "))
        self.assertEqual(self.server.metric("num_requests_running"), 1)
        stream.close()
        self.assertTrue(self.server.wait_idle(2))
        self.assertEqual(self.server.metric("kv_cache_usage_perc"), 0)
        self.assertEqual(self.server.metric("requests_aborted_total"), aborted + 1)

    def test_200_streams_half_of_them_cut_leave_nothing(self):
        self.assertTrue(self.server.wait_idle())
        whole = []

        def one(i):
            stream = RawStream(self.server.port, prompt=TEXT, max_tokens=24, ignore_eos=True, seed=i)
            if i % 2 == 0:
                body = stream.read_all()
                whole.append(body.rstrip().endswith(b"[DONE]") or b"[DONE]" in body)
            else:
                stream.read_until(b"data: ")
            stream.close()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(200)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(whole, [True] * 100)
        self.assertTrue(self.server.wait_idle())
        self.assertEqual(self.server.metric("kv_cache_usage_perc"), 0)
        self.assertEqual(self.server.metric("kv_cache_bytes"), 0)

    def test_an_idle_server_uses_no_cpu(self):
        self.assertTrue(self.server.wait_idle())
        time.sleep(0.3)

        def ticks():
            with open(f"/proc/{self.server.process.pid}/stat", encoding="ascii") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])  # utime + stime

        before = ticks()
        time.sleep(2)
        used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
        self.assertLessEqual(used, 0.02, "seconds of CPU in 2 s of idling")


class Formats(unittest.TestCase):
    """The store's formats through the whole program."""

    def serve(self, *arguments):
        server = Server(*arguments)
        self.addCleanup(server.close)
        return server

    def greedy(self, server, tokens):
        return server.complete(prompt=PROMPT_IDS, temperature=0, max_tokens=tokens, ignore_eos=True,
                               return_token_ids=True).json()["choices"][0]["token_ids"]

    def test_what_is_still_in_the_residual_is_exact(self):
        # 15 + 64 tokens are fewer than R: nothing is quantized yet.
        for name in ("kivi4", "kivi2"):
            server = self.serve("--kv-cache-dtype", name, "--kivi-residual-length", "128")
            self.assertEqual(self.greedy(server, len(GREEDY_IDS)), GREEDY_IDS, name)
            server.close()

    def test_two_bits_change_a_long_text_and_hold_fewer_bytes(self):
        texts, held = {}, {}
        for name in ("fp16", "kivi4", "kivi2"):
            server = self.serve("--kv-cache-dtype", name, "--kivi-residual-length", "32")
            stream = RawStream(server.port, prompt=PROMPT_IDS, temperature=0, max_tokens=1500,
                               ignore_eos=True)
            stream.read_until(b"data: ")
            while stream.received.count(b"data: ") < 400:
                stream.received += stream.socket.recv(65536)
            held[name] = server.metric("kv_cache_bytes")
            stream.close()
            texts[name] = self.greedy(server, 200)
            server.close()
        self.assertEqual(len(texts["kivi2"]), 200)
        self.assertNotEqual(texts["kivi2"], texts["fp16"])
        self.assertLess(held["kivi4"], held["fp16"] * 0.5)
        self.assertLess(held["kivi2"], held["kivi4"])

    def test_prefill_in_chunks_gives_the_golden_text(self):
        server = self.serve("--kv-cache-dtype", "fp16", "--prefill-chunk-tokens", "4",
                            "--max-num-seqs", "4")
        self.assertEqual(self.greedy(server, len(GREEDY_IDS)), GREEDY_IDS)


class Access(unittest.TestCase):
    def test_a_key_is_needed_where_one_is_set(self):
        server = Server(KIVI_API_KEY="secret-of-the-test")
        self.addCleanup(server.close)
        self.assertEqual(server.get("/v1/models").status, 401)
        self.assertIn("www-authenticate", server.get("/v1/models").headers)
        self.assertEqual(server.get("/v1/models", "-H", "Authorization: Bearer wrong").status, 401)
        key = ("-H", "Authorization: Bearer secret-of-the-test")
        self.assertEqual(server.get("/v1/models", *key).status, 200)
        self.assertEqual(server.post("/tokenize", {"prompt": "x"}).status, 401)
        self.assertEqual(server.get("/health").status, 200)
        self.assertNotIn("secret-of-the-test", server.log_text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
