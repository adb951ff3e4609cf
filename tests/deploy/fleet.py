# SPDX-License-Identifier: Apache-2.0
"""Replicas of `kivi serve` and an Envoy in front of them, on loopback, and clients of both."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from ports import free_port  # noqa: E402

MODEL = ROOT / "models" / "tales-llama"


def get(port, path):
    """(status, text), or (0, "") where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def wait_for(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"fleet-test: {what} did not happen in {seconds} s")
        time.sleep(0.05)


class Replica:
    def __init__(self, kivi, log, *arguments):
        self.kivi, self.log, self.arguments = kivi, log, arguments
        self.port, self.grpc_port, self.process = free_port(), free_port(), None

    def start(self):
        self.process = subprocess.Popen(
            [self.kivi, "serve", str(MODEL), "--port", str(self.port), "--grpc-port",
             str(self.grpc_port), "--threads", "1", *self.arguments], stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log,
            env={k: v for k, v in os.environ.items() if not k.startswith("KIVI_")})
        wait_for("a replica's readiness", 120, lambda: get(self.port, "/health/ready")[0] == 200)

    def stop(self):
        """SIGTERM; the exit status once what runs has ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def metric(self, name):
        """The sum of the samples of kivi:NAME; nan where the replica does not answer."""
        status, text = get(self.port, "/metrics")
        values = re.findall(rf"^kivi:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, values)) if status == 200 else float("nan")


class Envoy:
    """Runs a file of deploy/envoy with its ports replaced by free ones."""

    def __init__(self, name, replicas, log, round_robin=False):
        self.port, self.grpc_port, self.admin_port = free_port(), free_port(), free_port()
        text = (ROOT / "deploy/envoy" / name).read_text()
        ports = {8000: self.port, 50051: self.grpc_port, 9901: self.admin_port}
        for i, replica in enumerate(replicas):
            ports.update({8001 + i: replica.port, 50061 + i: replica.grpc_port})
        for old, new in ports.items():
            text, count = re.subn(rf"(port_value: ){old}\b", rf"\g<1>{new}", text)
            assert count == 1, (old, count)
        if round_robin:
            text, count = re.subn("lb_policy: LEAST_REQUEST", "lb_policy: ROUND_ROBIN", text)
            assert count == 2, count
        self.process = subprocess.Popen(
            [os.environ["ENVOY"], "--config-yaml", text, "--log-level", "warning",
             "--concurrency", "1", "--use-dynamic-base-id"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for("Envoy's start", 30, lambda: get(self.port, "/health/ready")[0] == 200)
            wait_for("both replicas' health in Envoy", 30, self.all_healthy)
        except BaseException:
            self.close()
            raise

    def all_healthy(self):
        """Whether Envoy sends requests of both kinds to both replicas."""
        text = get(self.admin_port, "/clusters")[1]
        return all(len(re.findall(rf"^kivi-{kind}::\S+::health_flags::healthy$", text, re.MULTILINE)) == 2
                   for kind in ("http", "grpc"))

    def counter(self, name):
        """A number that Envoy has counted."""
        text = get(self.admin_port, "/stats?filter=" + re.escape(name))[1]
        return int(re.search(rf"^{re.escape(name)}: (\d+)$", text, re.MULTILINE).group(1))

    def close(self):
        self.process.kill()
        self.process.wait()


def ask(port, **body):
    """One completion; (status, parsed reply)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", json.dumps({"model": "tales-llama", **body}),
                           {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


class Load:
    """Clients that send requests one after another, every other one streamed, and judge each reply."""
    kind = "http"

    def __init__(self, port, clients, tokens):
        self.port, self.tokens = port, tokens
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.replies = self.streams = self.cut_streams = 0
        self.failures, self.slowest = [], 0.0
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        stream = number % 2 == 0
        while not self.ended.is_set():
            begin = time.monotonic()
            wrong, begun = self.one(number, stream)
            with self.lock:
                self.slowest = max(self.slowest, time.monotonic() - begin)
                if wrong and begun:
                    self.cut_streams += 1  # its first token was at the client: nobody can repeat it
                elif wrong:
                    self.failures.append(("stream: " if stream else "reply: ") + wrong)
                elif stream:
                    self.streams += 1
                else:
                    self.replies += 1
            stream = not stream

    def one(self, number, stream):
        """(what is wrong or "", whether a stream had begun)."""
        begun = False
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body = {"model": "tales-llama", "prompt": f"Once upon a time number {number}",
                    "max_tokens": self.tokens, "ignore_eos": True, "stream": stream}
            connection.request("POST", "/v1/completions", json.dumps(body),
                               {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                return f"{reply.status}: {reply.read()[:200]}", False
            if not stream:
                usage = json.loads(reply.read())["usage"]
                return ("" if usage["completion_tokens"] == self.tokens else f"{usage}"), False
            text = b""
            while part := reply.read1(65536):
                text, begun = text + part, True
            return ("" if text.endswith(b"data: [DONE]\n\n") else "the stream has no end"), begun
        except (OSError, http.client.HTTPException, ValueError) as error:
            return repr(error), begun
        finally:
            connection.close()

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def figures(self):
        return {"replies": self.replies, "streams": self.streams, "cut_streams": self.cut_streams,
                "failed": len(self.failures), "slowest_s": round(self.slowest, 2),
                "failures": self.failures[:5]}
