#!/usr/bin/python3
"""End to end: the real program on loopback, with curl and plain sockets as clients.

    BINARY_UNDER_TEST=build/kivi tests/e2e/e2e_test.py [-k NAME]
"""

import json
import os
import tempfile
import threading
import time
import unittest

from harness import (GOLDEN, GREEDY_IDS, KIVI, MODEL, PROMPT_IDS, RawStream, Server, events_of,
                     kivi, text_of)

TEXT = "Once upon a time there was a king"


class WithServer(unittest.TestCase):
    """One server for the tests of a class; its log is shown where one of them fails."""
    arguments = ("--kv-cache-dtype", "fp16")

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def run(self, result=None):
        known = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > known and hasattr(self, "server"):
            print(f"--- log of the server of {self.id()}:\n{self.server.log_text()[-4000:]}")


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


class Shutdown(unittest.TestCase):
    def setUp(self):
        self.server = Server("--kv-cache-dtype", "kivi4", "--shutdown-timeout", "120")
        self.addCleanup(self.server.close)

    def long_stream(self, server, tokens=1900):
        """A stream that has begun and would go on for a while."""
        stream = RawStream(server.port, prompt=TEXT, max_tokens=tokens, ignore_eos=True, seed=1)
        self.addCleanup(stream.close)
        self.assertTrue(stream.read_until(b"data: "))
        return stream

    def test_sigterm_finishes_a_running_stream_and_takes_no_new_work(self):
        stream = self.long_stream(self.server, tokens=500)
        self.server.terminate()
        deadline = time.monotonic() + 5
        while self.server.get("/health/ready").status == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        refused = self.server.complete(prompt="x", max_tokens=1)
        self.assertIsNone(self.server.process.poll(), "it must still be draining")
        self.assertIn(refused.status, (503, 0))  # 0: the listening socket is closed already
        if refused.status == 503:
            self.assertIn("retry-after", refused.headers)
        body = stream.read_all()
        self.assertIn(b"[DONE]", body)
        self.assertIn(b'"finish_reason":"length"', body.replace(b": ", b":"))
        self.assertEqual(self.server.process.wait(timeout=20), 0)

    def test_sigterm_of_an_idle_server_ends_soon_with_0(self):
        self.server.terminate()
        self.assertEqual(self.server.process.wait(timeout=5), 0)

    def test_a_second_sigterm_ends_at_once(self):
        self.long_stream(self.server)
        self.server.terminate()
        time.sleep(0.2)
        self.assertIsNone(self.server.process.poll(), "the stream should keep it alive")
        self.server.terminate()
        self.server.process.wait(timeout=2)

    def test_what_is_left_after_the_timeout_is_aborted(self):
        server = Server("--shutdown-timeout", "1")
        self.addCleanup(server.close)
        # Many, so that none can finish within the second.
        stream = [self.long_stream(server) for _ in range(30)][0]
        server.terminate()
        body = stream.read_all()
        self.assertIn(b'"finish_reason":"abort"', body.replace(b": ", b":"))
        server.process.wait(timeout=10)


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


class CommandLine(unittest.TestCase):
    def test_generate_prints_the_golden_ids(self):
        code, out, err = kivi("generate", MODEL, "--prompt-ids", ",".join(map(str, PROMPT_IDS)),
                              "--temperature", "0", "--max-tokens", str(len(GREEDY_IDS)), "--ids",
                              "--kv-cache-dtype", "fp16")
        self.assertEqual(code, 0, err)
        self.assertEqual([int(x) for x in out.split()], GREEDY_IDS)

    def test_generate_reads_standard_input_and_stops(self):
        code, whole, _ = kivi("generate", MODEL, "-p", TEXT, "--temperature", "0", "--max-tokens",
                              "30")
        self.assertEqual(code, 0)
        stop = whole[10:14]
        code, cut, _ = kivi("generate", MODEL, "-p", "-", "--temperature", "0", "--max-tokens",
                            "30", "--stop", stop, stdin=TEXT)
        self.assertEqual(code, 0)
        self.assertEqual(cut, whole[:whole.index(stop)] + "\n")

    def test_info_names_family_sizes_and_formats(self):
        code, out, err = kivi("info", MODEL)
        self.assertEqual(code, 0, err)
        for text in ("LlamaForCausalLM", "6852864", "4 query, 2 KV, of 64 channels", "sentencepiece",
                     "kivi2", "auto is kivi4"):
            self.assertIn(text, out)

    def test_dry_run_prints_the_plan_and_ends(self):
        for command in ("serve", "generate"):
            code, out, err = kivi(command, MODEL, "--dry-run", "--kv-cache-dtype", "kivi2")
            self.assertEqual(code, 0, err)
            for text in ("kivi2 G32 R128", "pages", "residual", "weights"):
                self.assertIn(text, out)

    def test_mistakes_end_with_2_and_say_what_is_expected(self):
        cases = [
            (("serve", MODEL, "--prot", "1"), "did you mean --port?"),
            (("serve", MODEL, "--port", "x"), "expected an integer in [-1, 65535]"),
            (("serve", MODEL, "--enable-prefix-caching"), "not built in this version"),
            (("serve", MODEL, "--kivi-residual-length", "48"), "kivi_residual_length is 48"),
            (("serve",), "MODEL is missing"),
            (("srve", MODEL), "did you mean serve?"),
            (("bench", "kernels"), "not built yet"),
            (("kv-stats",), "not built yet"),
            ((), "Usage: kivi COMMAND"),
        ]
        for arguments, expected in cases:
            code, _, err = kivi(*arguments)
            self.assertEqual((code, expected in err), (2, True), f"{arguments}: {code} {err}")

    def test_a_model_that_is_not_there_ends_with_1(self):
        for command in ("serve", "generate", "info"):
            code, _, err = kivi(command, "/nowhere", *(("-p", "x") if command == "generate" else ()))
            self.assertEqual(code, 1, err)
            self.assertIn("/nowhere", err)

    def test_variables_and_files_set_what_flags_do(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write('{"kv_cache_dtype": "fp8", "max_num_seqs": 3}')
            file.flush()
            code, out, err = kivi("serve", MODEL, "--dry-run", "--config", file.name,
                                  KIVI_KV_CACHE_DTYPE="kivi4", KIVI_PROT="1")
        self.assertEqual(code, 0, err)
        self.assertIn("kivi4 G32 R128", out)
        self.assertIn("KIVI_PROT", err)

    def test_version(self):
        code, out, _ = kivi("version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"^kivi \d+\.\d+\.\d+\n$")

    def test_bench_throughput_counts_its_tokens(self):
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            code, out, err = kivi("bench", "throughput", MODEL, "--num-prompts", "6",
                                  "--prompt-len", "8:20", "--output-len", "5", "--concurrency",
                                  "1,6", "--json", file.name)
            self.assertEqual(code, 0, err)
            report = json.load(file)
        self.assertIn("batch size over time", out)
        self.assertEqual([r["max_concurrency"] for r in report["runs"]], [1, 6])
        for run in report["runs"]:
            self.assertEqual((run["completed"], run["total_output_tokens"]), (6, 30))
        self.assertEqual(report["runs"][0]["batch_size_max"], 1)
        self.assertEqual(report["runs"][1]["batch_size_max"], 6)


if __name__ == "__main__":
    print(f"testing {KIVI}")
    unittest.main(verbosity=2)
