# SPDX-License-Identifier: Apache-2.0
"""Clients of the gRPC service under the same rules as fleet.Load: Debian's python3-grpcio, stubs made from proto/."""

import sys

import grpc

from fleet import ROOT, Load

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
import grpc_client  # noqa: E402


class GrpcLoad(Load):
    """Complete and Generate in turn; each client has a connection of its own."""
    kind = "grpc"
    stubs = None

    def __init__(self, port, clients, tokens):
        GrpcLoad.stubs = GrpcLoad.stubs or grpc_client.Stubs()
        self.stub_of = {}  # by client; each client writes its own
        super().__init__(port, clients, tokens)

    def run(self, number):
        # Without the option, channels to one address share a connection.
        with grpc.insecure_channel(f"127.0.0.1:{self.port}",
                                   [("grpc.use_local_subchannel_pool", 1)]) as channel:
            self.stub_of[number] = self.stubs.kivi_grpc.KiviStub(channel)
            super().run(number)

    def one(self, number, stream):
        request = self.stubs.kivi.GenerateRequest(
            text=f"Once upon a time number {number}", max_tokens=self.tokens, ignore_eos=True)
        stub, begun, usage = self.stub_of[number], False, None
        try:
            if stream:
                for message in stub.Generate(request, timeout=120):
                    begun = True
                    usage = message.usage if message.HasField("usage") else usage
            else:
                usage = stub.Complete(request, timeout=120).usage
        except grpc.RpcError as error:
            return grpc_client.describe_error(self.stubs, error), begun
        if usage is None or usage.completion_tokens != self.tokens:
            return f"it did not end whole: {usage}", begun
        return "", begun
