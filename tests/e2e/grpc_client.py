#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A gRPC client of kivi.v1.Kivi: python3-grpcio, with stubs made from proto/ by protoc when it runs.
Debian packages: python3-grpcio python3-protobuf protobuf-compiler protobuf-compiler-grpc.

    tests/e2e/grpc_client.py [--address HOST:PORT] [--key KEY] COMMAND ...

Exits with 0 where the call did what the command is for, 1 where it did not, 2 on wrong usage."""

import argparse
import importlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

try:
    import grpc
    from google.protobuf import json_format
except ImportError:
    sys.exit("grpc_client.py: needs the Debian packages python3-grpcio and python3-protobuf, and "
             "/usr/bin/python3 to run it")

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = ("kivi/v1/kivi.proto", "kivi/v1/error.proto", "grpc/health/v1/health.proto")


class Stubs:
    """The generated modules: `kivi`, `error`, `health`."""

    def __init__(self):
        plugin = shutil.which("grpc_python_plugin")
        if plugin is None or shutil.which("protoc") is None:
            sys.exit("grpc_client.py: needs the Debian packages protobuf-compiler and "
                     "protobuf-compiler-grpc")
        with tempfile.TemporaryDirectory(prefix="kivi-stubs-") as folder:
            # health.proto under a name of its own: the package `grpc` is python3-grpcio's.
            sources = pathlib.Path(folder, "proto")
            sources.mkdir()
            names = [pathlib.Path(f).stem for f in FILES]
            for file, name in zip(FILES, names):
                shutil.copy(PROTO / file, sources / f"kivi_{name}.proto")
            subprocess.run(
                ["protoc", f"-I{sources}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                 f"--plugin=protoc-gen-grpc_python={plugin}",
                 *(f"kivi_{name}.proto" for name in names)], check=True)
            sys.path.insert(0, folder)
            try:
                for name in names:
                    setattr(self, name, importlib.import_module(f"kivi_{name}_pb2"))
                self.kivi_grpc = importlib.import_module("kivi_kivi_pb2_grpc")
                self.health_grpc = importlib.import_module("kivi_health_pb2_grpc")
            finally:
                sys.path.remove(folder)


def describe_error(stubs, error):
    """One line: code, message, and the field that the details name."""
    line = f"{error.code().name}: {error.details()}"
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in stubs.error.Status.FromString(value).details:
            if detail.type_url.endswith("/kivi.v1.ErrorDetail"):
                parsed = stubs.error.ErrorDetail.FromString(detail.value)
                line += f" [{parsed.code}{', field ' + parsed.field if parsed.field else ''}]"
    return line


class Client:
    def __init__(self, arguments):
        self.arguments = arguments
        self.stubs = Stubs()
        self.channel = grpc.insecure_channel(arguments.address)
        self.kivi = self.stubs.kivi_grpc.KiviStub(self.channel)
        self.health_stub = self.stubs.health_grpc.HealthStub(self.channel)
        self.options = {"timeout": arguments.timeout, "metadata": self.metadata()}

    def metadata(self):
        pairs = []
        if self.arguments.key:
            pairs.append(("authorization", f"Bearer {self.arguments.key}"))
        if self.arguments.request_id:
            pairs.append(("x-request-id", self.arguments.request_id))
        return tuple(pairs)

    def request(self):
        a = self.arguments
        request = self.stubs.kivi.GenerateRequest(ignore_eos=a.ignore_eos, echo=a.echo,
                                                  stop=a.stop)
        if a.ids is not None:
            request.token_ids.ids.extend(a.ids)
        else:
            request.text = a.prompt
        for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "n", "logprobs"):
            if getattr(a, name) is not None:
                setattr(request, name, getattr(a, name))
        for name in ("json_schema", "regex", "grammar"):
            if getattr(a, name) is not None:
                setattr(request.structured_output, name, getattr(a, name))
        if a.json_object:
            request.structured_output.json_object = True
        if a.choice:
            request.structured_output.choice.texts.extend(a.choice)
        return request

    # ---- commands: each returns whether it saw what it is for ---------------------------------
    def generate(self):
        """The text goes to standard output as it arrives; with --json, the messages do."""
        usage, ended = None, set()
        for message in self.kivi.Generate(self.request(), **self.options):
            if self.arguments.json:
                print(one_line(message), flush=True)
            for choice in message.choices:
                if not self.arguments.json:
                    print(choice.text, end="", flush=True)
                if choice.finish_reason:
                    ended.add(choice.index)
            if message.HasField("usage"):
                usage = message.usage
        if not self.arguments.json:
            print(flush=True)
        return usage is not None and len(ended) == (self.arguments.n or 1)

    def complete(self):
        response = self.kivi.Complete(self.request(), **self.options)
        print(one_line(response) if self.arguments.json else
              "\n".join(choice.text for choice in response.choices))
        return len(response.choices) == (self.arguments.n or 1) and response.HasField("usage")

    def tokenize(self):
        request = self.stubs.kivi.TokenizeRequest(text=self.arguments.text)
        request.add_special_tokens = not self.arguments.no_special
        print(*self.kivi.Tokenize(request, **self.options).token_ids)
        return True

    def detokenize(self):
        request = self.stubs.kivi.DetokenizeRequest(token_ids=self.arguments.token_ids,
                                                    skip_special_tokens=True)
        print(self.kivi.Detokenize(request, **self.options).text)
        return True

    def info(self):
        model = self.kivi.GetModelInfo(self.stubs.kivi.GetModelInfoRequest(), **self.options)
        server = self.kivi.GetServerInfo(self.stubs.kivi.GetServerInfoRequest(), **self.options)
        print(json.dumps({"model": as_dict(model), "server": as_dict(server)}, indent=2))
        return model.model != "" and server.version != ""

    def health(self):
        """Succeeds where the service is SERVING; with --watch, prints so many states as they
        come."""
        request = self.stubs.health.HealthCheckRequest(service=self.arguments.service)
        names = self.stubs.health.HealthCheckResponse.ServingStatus.Name
        if self.arguments.watch:
            states = self.health_stub.Watch(request, timeout=self.arguments.timeout)
            for _ in range(self.arguments.watch):
                print(names(next(states).status), flush=True)
            states.cancel()
            return True
        state = names(self.health_stub.Check(request, timeout=self.arguments.timeout).status)
        print(state)
        return state == "SERVING"

    def abort(self):
        """Starts a stream, ends it by Abort, and reads it to its end."""
        request = self.request()
        request.request_id = f"abort-{time.time_ns()}"
        call = self.kivi.Generate(request, **self.options)
        reasons = [c.finish_reason for c in next(call).choices]
        self.kivi.Abort(self.stubs.kivi.AbortRequest(request_id=request.request_id),
                        **self.options)
        for message in call:
            reasons += [c.finish_reason for c in message.choices]
        reason = self.stubs.kivi.FinishReason.Name(max(reasons))
        print(reason)
        return reason == "FINISH_REASON_ABORT" and call.code() == grpc.StatusCode.OK

    def cancel(self):
        """Cancels a stream after --after messages; the call must end as CANCELLED."""
        call = self.kivi.Generate(self.request(), **self.options)
        for _ in range(self.arguments.after):
            next(call)
        call.cancel()
        return self.ends_with(call, grpc.StatusCode.CANCELLED)

    def deadline(self):
        """A stream that is longer than --seconds; the call must end as DEADLINE_EXCEEDED."""
        options = {**self.options, "timeout": self.arguments.seconds}
        return self.ends_with(self.kivi.Generate(self.request(), **options),
                              grpc.StatusCode.DEADLINE_EXCEEDED)

    def ends_with(self, call, code):
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        print(call.code().name)
        return call.code() == code


def as_dict(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True,
                                     including_default_value_fields=True)


def one_line(message):
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True))


def parse_ids(text):
    return [int(part) for part in text.replace(",", " ").split()]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:50051", help="HOST:PORT of the server")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--request-id", help="sent as x-request-id")
    parser.add_argument("--timeout", type=float, default=120, help="seconds a call may take")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text):
        return commands.add_parser(name, help=text, description=text)

    for name, text, tokens in (
            ("generate", "stream the continuation of a prompt", None),
            ("complete", "the same, answered whole", None),
            ("abort", "start a stream and end it by Abort", 100000),
            ("cancel", "start a stream and cancel it", 100000),
            ("deadline", "start a stream that a deadline ends", 100000)):
        sub = command(name, text)
        sub.add_argument("--prompt", default="Once upon a time")
        sub.add_argument("--ids", type=parse_ids, help="token ids instead of --prompt")
        sub.add_argument("--max-tokens", type=int, default=tokens)
        sub.add_argument("--temperature", type=float)
        sub.add_argument("--top-p", type=float)
        sub.add_argument("--top-k", type=int)
        sub.add_argument("--seed", type=int)
        sub.add_argument("--n", type=int)
        sub.add_argument("--logprobs", type=int)
        sub.add_argument("--stop", action="append", default=[])
        sub.add_argument("--json-schema", help="the text must be JSON that fits this JSON Schema")
        sub.add_argument("--json-object", action="store_true", help="the text must be a JSON object")
        sub.add_argument("--regex", help="the text must match this regular expression")
        sub.add_argument("--grammar", help="the text must be of this grammar (GBNF or Lark)")
        sub.add_argument("--choice", action="append", default=[], help="the text must be one of these")
        sub.add_argument("--echo", action="store_true")
        sub.add_argument("--ignore-eos", action="store_true", default=tokens is not None)
        sub.add_argument("--json", action="store_true", help="print messages, one line each")
        if name == "cancel":
            sub.add_argument("--after", type=int, default=3, help="messages read before")
        if name == "deadline":
            sub.add_argument("--seconds", type=float, default=0.2)
    sub = command("tokenize", "text to token ids")
    sub.add_argument("text")
    sub.add_argument("--no-special", action="store_true", help="without BOS")
    command("detokenize", "token ids to text").add_argument("token_ids", type=int, nargs="+")
    command("info", "GetModelInfo and GetServerInfo, as JSON")
    sub = command("health", "grpc.health.v1: succeeds where the server is SERVING")
    sub.add_argument("--service", default="kivi.v1.Kivi")
    sub.add_argument("--watch", type=int, default=0, metavar="N", help="print N states")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    client = Client(arguments)
    try:
        return 0 if getattr(client, arguments.command)() else 1
    except grpc.RpcError as error:
        print(describe_error(client.stubs, error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
