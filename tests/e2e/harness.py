# SPDX-License-Identifier: Apache-2.0
"""Starts the real `kivi` on loopback and talks to it with curl and plain sockets (standard library
only). A server's log is printed when a test with it fails."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
KIVI = os.environ.get("BINARY_UNDER_TEST", str(ROOT / "build" / "kivi"))
MODEL = str(ROOT / "models" / "tales-llama")
GOLDEN = json.loads((ROOT / "models" / "tales-llama" / "golden.json").read_text())
TEXT = "Once upon a time there was a king"
PROMPT_IDS = GOLDEN["prompt_ids"]
GREEDY_IDS = GOLDEN["greedy_ids"][len(PROMPT_IDS):]


def environment(**more):
    """Ours without any KIVI_ variable, so that nothing outside decides a test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KIVI_")}
    return {**kept, **more}


def kivi(*arguments, stdin="", **variables):
    """Runs a command to its end; (exit code, stdout, stderr)."""
    run = subprocess.run([KIVI, *arguments], input=stdin, capture_output=True, text=True,
                         env=environment(**variables), timeout=120)
    return run.returncode, run.stdout, run.stderr


def not_run(test, why):
    """Skips a test that this machine cannot run. With CI=true that is a failure: there a test must run."""
    if os.environ.get("CI") == "true":
        test.fail(f"CI=true, so this test must run: {why}")
    test.skipTest(why)


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Server:
    """`kivi serve` of the Llama tales or another model; ready when the constructor returns."""
    preexec = None  # a function that the new process calls before it becomes the server

    def __init__(self, *arguments, model=MODEL, **variables):
        self.port, self.grpc_port = free_port(), free_port()
        self.log = tempfile.NamedTemporaryFile(mode="w+", prefix="kivi-e2e-", suffix=".log")
        self.process = subprocess.Popen(
            [KIVI, "serve", model, "--port", str(self.port), "--grpc-port", str(self.grpc_port),
             *arguments], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env=environment(**variables), preexec_fn=self.preexec)
        deadline = time.monotonic() + 60
        while self.get("/health/ready").status != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"kivi serve did not become ready:\n{self.log_text()}")
            time.sleep(0.05)

    def log_text(self):
        return pathlib.Path(self.log.name).read_text()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    # ---- HTTP, by curl ------------------------------------------------------------------------
    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def curl(self, path, *options, data=None):
        command = ["curl", "-sS", "-i", "--max-time", "60", *options, self.url(path)]
        if data is not None:
            command += ["--data-binary", "@-", "-H", "Content-Type: application/json"]
            data = data if isinstance(data, bytes) else data.encode()
        run = subprocess.run(command, input=data, capture_output=True, timeout=90)
        if run.returncode != 0:
            return Reply(0, {}, run.stderr.decode())
        head, _, body = run.stdout.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):  # curl asks before it sends a large body
            head, _, body = body.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        return Reply(int(status.split()[1]), headers, body.decode())

    def get(self, path, *options):
        return self.curl(path, *options)

    def post(self, path, body, *options):
        return self.curl(path, *options, data=body if isinstance(body, (str, bytes))
                         else json.dumps(body))

    def complete(self, **body):
        return self.post("/v1/completions", {"model": "tales-llama", **body})

    def stream(self, **body):
        """The events of a streamed completion, as parsed JSON; the last must be [DONE]."""
        reply = self.complete(stream=True, **body)
        if reply.status != 200:
            raise AssertionError(f"{reply.status}: {reply.body}")
        return events_of(reply.body)

    # ---- metrics ------------------------------------------------------------------------------
    def metric(self, name, **labels):
        """The sum of the samples of `kivi:<name>` that have these labels."""
        total = 0.0
        for line in self.get("/metrics").body.splitlines():
            match = re.match(rf"kivi:{name}(?:{{(.*)}})? (\S+)", line)
            if match and all(f'{k}="{v}"' in (match.group(1) or "") for k, v in labels.items()):
                total += float(match.group(2))
        return total

    def wait_idle(self, seconds=10):
        """Waits until no request runs or waits; False where that does not happen in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.metric("num_requests_running") == 0 and self.metric(
                    "num_requests_waiting") == 0:
                return True
            time.sleep(0.05)
        return False


def event_lines(body):
    """The lines of each event of a server-sent-events body, without comments."""
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            yield lines


def events_of(body):
    """The JSON of each `data:` event of a server-sent-events body that ends in [DONE]."""
    events = []
    for lines in event_lines(body):
        if len(lines) != 1 or not lines[0].startswith("data: "):
            raise AssertionError(f"not one line of data: {lines}")
        events.append(lines[0][len("data: "):])
    if not events or events[-1] != "[DONE]":
        raise AssertionError(f"the stream does not end in [DONE]: {body[-200:]!r}")
    return [json.loads(event) for event in events[:-1]]


def text_of(events):
    return "".join(c["text"] for event in events for c in event["choices"])


class RawStream:
    """A streamed completion on a plain socket, read as it comes; may be cut at any time."""

    def __init__(self, port, **body):
        payload = json.dumps({"model": "tales-llama", "stream": True, **body}).encode()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                            b"Content-Type: application/json\r\nConnection: close\r\n"
                            b"Content-Length: %d\r\n\r\n" % len(payload) + payload)
        self.received = b""

    def read_until(self, text):
        """Reads until `text` has arrived; False at the end of the stream."""
        while text not in self.received:
            data = self.socket.recv(65536)
            if not data:
                return False
            self.received += data
        return True

    def read_all(self):
        while data := self.socket.recv(65536):
            self.received += data
        return self.received

    def close(self):
        self.socket.close()


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
