#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Two replicas of `kivi serve` behind Envoy (deploy/envoy). Run by scripts/fleet-test.

    ENVOY=PROGRAM tests/deploy/fleet_test.py [--kivi build/kivi] [NAME...]

Each part prints one JSON object with its figures, and the program fails where a part does not hold."""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import threading
import time

from fleet import ROOT, Envoy, Load, Replica, ask, wait_for
from grpc_load import GrpcLoad


class Fleet:
    """Two replicas that run, and an Envoy."""

    def __init__(self, kivi, file, *arguments, round_robin=False):
        self.log = tempfile.NamedTemporaryFile(mode="w+", prefix="kivi-fleet-", suffix=".log",
                                               delete=False)
        self.replicas = [Replica(kivi, self.log, *arguments) for _ in range(2)]
        self.envoy = None
        self.file, self.round_robin = file, round_robin

    def __enter__(self):
        try:
            for replica in self.replicas:
                replica.start()
            self.envoy = Envoy(self.file, self.replicas, self.log, self.round_robin)
        except BaseException:  # a start that fails leaves no process behind
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        if self.envoy:
            self.envoy.close()
        for replica in self.replicas:
            if replica.process and replica.process.poll() is None:
                replica.kill()

    def computed(self):
        """Generated tokens by replica."""
        return [replica.metric("generation_tokens_total") for replica in self.replicas]


def conversations(port, count, seed):
    """Chats of two turns, the turns of all chats in random order. Returns the share of the second
    turns that went on from what the first one had computed."""
    chance = random.Random(seed)
    words = (ROOT / "tests/data/heldout_sample.txt").read_text().split()
    chats = [" ".join(chance.choice(words) for _ in range(150)) for _ in range(count)]
    turns = [i for i in range(count) for _ in range(2)]
    chance.shuffle(turns)
    hits, seen = 0, set()
    for i in turns:
        status, reply = ask(port, prompt=chats[i], max_tokens=8, temperature=0, ignore_eos=True)
        assert status == 200, reply
        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        if i in seen:
            hits += cached > 100
        else:
            assert cached == 0, "a new chat found something"
        seen.add(i)
        chats[i] += reply["choices"][0]["text"] + " And then? " * 5
    return hits / count


def affinity(kivi):
    """Turns of a chat find what the turn before computed: by prefix affinity, and by round robin."""
    shares = {}
    for name, file, round_robin in (("affinity", "prefix-affinity.yaml", False),
                                    ("round_robin", "least-request.yaml", True)):
        with Fleet(kivi, file, round_robin=round_robin) as fleet:
            shares[name] = conversations(fleet.envoy.port, 100, seed=1)
            tokens = fleet.computed()
            shares[f"{name}_smaller_replica"] = round(min(tokens) / sum(tokens), 2)
    good = (shares["affinity"] >= 0.9 and 0.35 <= shares["round_robin"] <= 0.65
            and shares["affinity_smaller_replica"] > 0.25)
    return shares, good


class Loads:
    """Clients of the kinds given, while the body runs. Afterwards `figures` has what each kind saw."""

    def __init__(self, fleet, *kinds):
        self.fleet, self.kinds = fleet, kinds
        self.figures, self.good = {}, True

    def __enter__(self):
        ports = {"http": self.fleet.envoy.port, "grpc": self.fleet.envoy.grpc_port}
        self.loads = [kind(ports[kind.kind], 8 // len(self.kinds), tokens=160) for kind in self.kinds]
        return self

    def __exit__(self, kind, value, trace):
        for load in self.loads:
            load.ended.set()
        for load in self.loads:
            load.stop()
            repeated = self.fleet.envoy.counter(f"cluster.kivi-{load.kind}.upstream_rq_retry_success")
            self.figures[load.kind] = {**load.figures(), "repeated_elsewhere": repeated}
            enough = min(load.replies, load.streams) >= 6 // len(self.kinds)
            self.good = self.good and not load.failures and enough


def kill(kivi, file="prefix-affinity.yaml", kinds=(Load,)):
    """Each replica is killed under load and started again."""
    with Fleet(kivi, file) as fleet:
        with Loads(fleet, *kinds) as loads:
            for replica in fleet.replicas:
                time.sleep(3)
                replica.kill()
                time.sleep(3)
                replica.start()
                wait_for("the replica's return", 20, fleet.envoy.all_healthy)
            time.sleep(1)
    # Requests were in flight on the replicas that died, and were answered all the same.
    repeated = sum(figures["repeated_elsewhere"] for figures in loads.figures.values())
    return {"killed": 2, **loads.figures}, loads.good and repeated > 0


def upgrade(kivi, file="prefix-affinity.yaml", kinds=(Load,)):
    """Every replica is replaced under load, twice."""
    with Fleet(kivi, file) as fleet:
        codes = 0
        with Loads(fleet, *kinds) as loads:
            time.sleep(2)
            for replica in fleet.replicas * 2:
                codes += abs(replica.stop())
                replica.start()
                wait_for("the replica's return", 20, fleet.envoy.all_healthy)
                time.sleep(1)
    cut = sum(figures["cut_streams"] for figures in loads.figures.values())
    return {"replaced": 4, "exit_codes_sum": codes, **loads.figures}, loads.good and not codes and not cut


def kill_least(kivi):
    """The same under least-request.yaml, HTTP and gRPC at once."""
    return kill(kivi, "least-request.yaml", (Load, GrpcLoad))


def upgrade_least(kivi):
    """The same under least-request.yaml, HTTP and gRPC at once."""
    return upgrade(kivi, "least-request.yaml", (Load, GrpcLoad))


def grpc(kivi):
    """gRPC calls reach both replicas by least request."""
    with Fleet(kivi, "least-request.yaml") as fleet:
        calls = [subprocess.Popen(
            ["/usr/bin/python3", str(ROOT / "tests/e2e/grpc_client.py"), "--address",
             f"127.0.0.1:{fleet.envoy.grpc_port}", "generate", "--prompt", "Once upon a time",
             "--max-tokens", "200", "--ignore-eos"], stdout=subprocess.DEVNULL) for _ in range(6)]
        codes = [call.wait(60) for call in calls]
        tokens = fleet.computed()
    return {"calls": len(codes), "failed": sum(map(bool, codes)), "tokens": tokens}, (
        not any(codes) and all(tokens))


def autoscale(kivi):
    """What an autoscaler reads: waiting requests rise with the load and fall with it."""
    target = 4  # the chart's autoscaling.waitingRequests
    with Fleet(kivi, "least-request.yaml", "--max-num-seqs", "2") as fleet:
        def waiting():
            return sum(replica.metric("num_requests_waiting") for replica in fleet.replicas)

        before = waiting()
        threads = [threading.Thread(target=ask, args=(fleet.envoy.port,), kwargs={
            "prompt": f"Tale {i}", "max_tokens": 400, "ignore_eos": True}) for i in range(32)]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, waiting())
            time.sleep(0.05)
        after = waiting()
    # The horizontal pod autoscaler's rule: ceil(replicas * metric / target), of the mean of the replicas.
    wanted = math.ceil(2 * (most / 2) / target)
    figures = {"waiting_before": before, "waiting_most": most, "waiting_after": after,
               "replicas": 2, "replicas_wanted": wanted}
    return figures, before == 0 and after == 0 and wanted > 2


PARTS = {part.__name__: part for part in (affinity, kill, upgrade, kill_least, upgrade_least, grpc,
                                             autoscale)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kivi", default=str(ROOT / "build" / "kivi"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    failed = []
    for name in arguments.names or PARTS:
        begin = time.monotonic()
        figures, good = PARTS[name](arguments.kivi)
        print(f"{'ok' if good else 'FAILED'}: {name} ({time.monotonic() - begin:.0f} s): "
              f"{json.dumps(figures)}", flush=True)
        failed += [] if good else [name]
    if failed:
        sys.exit(f"fleet-test: {', '.join(failed)} failed")
    print("fleet-test: all passed")


if __name__ == "__main__":
    main()
