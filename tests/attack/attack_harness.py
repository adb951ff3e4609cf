# SPDX-License-Identifier: Apache-2.0
"""What the attacks share beside the harness of the end-to-end tests: a server under a limit of file
descriptors, its memory, and whether it still serves both of its ports."""

import os
import pathlib
import resource
import sys
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import grpc  # noqa: E402
import grpc_client  # noqa: E402
import harness  # noqa: E402

SLOW = os.environ.get("KIVI_ATTACK_SLOW") == "1"
slow = unittest.skipUnless(SLOW, "takes minutes: set KIVI_ATTACK_SLOW=1")
COMPLETE = "/kivi.v1.Kivi/Complete"

_stubs = None


def stubs():
    global _stubs
    if _stubs is None:
        _stubs = grpc_client.Stubs()
    return _stubs


def descriptor_limit(soft, hard=None):
    """For the harness's `preexec`: the server starts under this limit of descriptors."""
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft if hard is None else hard))
    return limit


def own_limit(descriptors):
    """Room for the attacker's own connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))


def memory_mb(pid, what="VmRSS"):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no {what}")


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def reset_peak(pid):
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


class Growth:
    """How many MB the peak of the server's resident memory rises within a `with`."""

    def __init__(self, server):
        self.pid, self.mb = server.process.pid, 0.0

    def __enter__(self):
        reset_peak(self.pid)
        self.before = memory_mb(self.pid)
        return self

    def __exit__(self, *_):
        self.mb = memory_mb(self.pid, "VmHWM") - self.before


def grpc_code(server, seconds=5, key=None, **fields):
    """The status code of one small Complete call, over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
        request = stubs().kivi.GenerateRequest(text="a tale", max_tokens=1, **fields)
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        try:
            stubs().kivi_grpc.KiviStub(channel).Complete(request, timeout=seconds,
                                                         metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def eventually(condition, seconds):
    until = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return held
