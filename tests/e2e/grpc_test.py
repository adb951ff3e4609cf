#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""gRPC end to end, through a client that is not ours: grpc_client.py (python3-grpcio).

    BINARY_UNDER_TEST=build/kivi tests/e2e/grpc_test.py [-k NAME]
"""

import json
import re
import subprocess
import threading
import time
import unittest

from harness import GREEDY_IDS, PROMPT_IDS, ROOT, TEXT, RawStream, Server, WithServer


def call(server, command, *arguments, globals_=()):
    """Runs the client; (exit code, stdout, stderr)."""
    run = subprocess.run(
        ["/usr/bin/python3", str(ROOT / "tests/e2e/grpc_client.py"), "--address",
         f"127.0.0.1:{server.grpc_port}", *globals_, command, *arguments],
        capture_output=True, text=True, timeout=300)
    return run.returncode, run.stdout, run.stderr


def ids(values):
    return ",".join(map(str, values))


class Grpc(WithServer):
    def ask(self, command, *arguments):
        code, out, err = call(self.server, command, *arguments)
        self.assertEqual(code, 0, err)
        return out

    def test_generate_streams_the_golden_ids(self):
        out = self.ask("generate", "--ids", ids(PROMPT_IDS), "--temperature", "0", "--max-tokens",
                       str(len(GREEDY_IDS)), "--json")
        messages = [json.loads(line) for line in out.splitlines()]
        got = [i for m in messages for c in m.get("choices", []) for i in c.get("token_ids", [])]
        self.assertEqual(got, GREEDY_IDS)
        self.assertGreater(len(messages), 10, "the text did not come in pieces")
        self.assertEqual(messages[-1]["usage"]["completion_tokens"], len(GREEDY_IDS))

    def test_both_front_ends_give_the_same_text(self):
        http = self.server.complete(prompt=TEXT, temperature=0.9, seed=5, max_tokens=40).json()
        asked = ("--prompt", TEXT, "--temperature", "0.9", "--seed", "5", "--max-tokens", "40")
        self.assertEqual(self.ask("generate", *asked), http["choices"][0]["text"] + "\n")
        self.assertEqual(self.ask("complete", *asked), http["choices"][0]["text"] + "\n")

    def test_tokenize_and_detokenize_are_those_of_http(self):
        out = self.ask("tokenize", TEXT, "--no-special").split()
        http = self.server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False}).json()
        self.assertEqual([int(x) for x in out], http["tokens"])
        self.assertEqual(self.ask("detokenize", *out), TEXT + "\n")

    def test_health_is_serving_and_info_names_the_model(self):
        self.assertEqual(self.ask("health"), "SERVING\n")
        self.assertEqual(self.ask("health", "--service", ""), "SERVING\n")
        info = json.loads(self.ask("info"))
        self.assertEqual(info["model"]["model"], "tales-llama")

    def test_cancel_deadline_and_abort_free_the_request(self):
        for command, expected in (("cancel", "CANCELLED"), ("deadline", "DEADLINE_EXCEEDED"),
                                  ("abort", "FINISH_REASON_ABORT")):
            self.assertEqual(self.ask(command), expected + "\n")
            self.assertTrue(self.server.wait_idle(2), command)
            self.assertEqual(self.server.metric("kv_cache_usage_perc"), 0)

    def test_generate_has_every_parameter_of_completions(self):
        """docs/api.md, section "gRPC", names the fields that have another name, or no meaning, in a call."""
        other = {"prompt": "text", "truncation_side": "truncate_prompt_end"}
        other |= dict.fromkeys(("response_format", "structured_outputs", "guided_json", "guided_regex",
                                "guided_choice", "guided_grammar"), "structured_output")
        without = {"stream", "stream_options", "return_token_ids", "return_tokens_as_token_ids", "user"}
        contract = (ROOT / "proto/kivi/v1/kivi.proto").read_text()
        message = re.search(r"^message GenerateRequest \{(.*?)^\}", contract, re.M | re.S).group(1)
        ours = set(re.findall(r"(\w+) = \d+;", message))
        api = self.server.get("/openapi.json").json()
        body = api["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
        names = set(body["schema"]["properties"])
        self.assertGreater(len(names), 40)
        self.assertEqual({name for name in names - without if other.get(name, name) not in ours}, set())
        self.assertEqual(without - names, set(), "these are no parameters of completions any more")
        self.assertEqual(ours - {other.get(name, name) for name in names} - {"token_ids"}, set())

    def test_errors_name_the_field(self):
        code, _, err = call(self.server, "generate", "--temperature", "-1")
        self.assertEqual(code, 1)
        self.assertIn("INVALID_ARGUMENT", err)
        self.assertIn("field temperature", err)
        code, _, err = call(self.server, "generate", "--ids", ids([5] * 4000))
        self.assertEqual(code, 1)
        self.assertIn("OUT_OF_RANGE", err)

    def test_counters_equal_what_the_client_counts(self):
        self.assertTrue(self.server.wait_idle())
        names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
        before = [self.server.metric(name) for name in names]
        handled = self.server.metric("grpc_server_handled_total", grpc_code="OK")
        out = self.ask("generate", "--n", "3", "--max-tokens", "21", "--ignore-eos", "--json")
        usage = json.loads(out.splitlines()[-1])["usage"]
        self.assertEqual(usage["completion_tokens"], 63)
        self.assertTrue(self.server.wait_idle())
        after = [self.server.metric(name) for name in names]
        self.assertEqual([a - b for a, b in zip(after, before)], [usage["prompt_tokens"], 63, 3])
        self.assertEqual(self.server.metric("grpc_server_handled_total", grpc_code="OK"),
                         handled + 1)


class GrpcLife(unittest.TestCase):
    def test_a_key_is_needed_where_one_is_set(self):
        server = Server(KIVI_API_KEY="secret-of-the-test")
        self.addCleanup(server.close)
        code, _, err = call(server, "generate", "--max-tokens", "3")
        self.assertEqual(code, 1)
        self.assertIn("UNAUTHENTICATED", err)
        code, _, err = call(server, "generate", "--max-tokens", "3",
                            globals_=("--key", "secret-of-the-test"))
        self.assertEqual(code, 0, err)

    def test_draining_is_not_serving_and_a_running_stream_ends_whole(self):
        server = Server("--shutdown-timeout", "120")
        self.addCleanup(server.close)
        answers = []
        running = threading.Thread(target=lambda: answers.append(
            call(server, "generate", "--max-tokens", "200", "--ignore-eos", "--json")))
        running.start()
        while server.metric("num_requests_running") < 1:
            time.sleep(0.02)
        # These keep the server draining until they are closed.
        others = [RawStream(server.port, prompt=TEXT, max_tokens=1900, ignore_eos=True)
                  for _ in range(8)]
        for stream in others:
            self.addCleanup(stream.close)
            self.assertTrue(stream.read_until(b"data: "))
        server.terminate()
        time.sleep(0.2)
        code, out, err = call(server, "health")
        self.assertEqual(code, 1)
        self.assertTrue("NOT_SERVING" in out or "UNAVAILABLE" in err, out + err)
        code, _, err = call(server, "generate", "--max-tokens", "3")
        self.assertEqual(code, 1)
        self.assertIn("UNAVAILABLE", err)
        self.assertIsNone(server.process.poll(), "it must still be draining")
        running.join()
        code, out, err = answers[0]
        self.assertEqual(code, 0, err)
        self.assertEqual(json.loads(out.splitlines()[-1])["usage"]["completion_tokens"], 200)
        for stream in others:
            stream.close()
        self.assertEqual(server.process.wait(timeout=20), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
