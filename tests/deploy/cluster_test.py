# SPDX-License-Identifier: Apache-2.0
"""The Helm chart in a cluster: what its pods do under upgrade, eviction and a crash. Run by scripts/cluster-test,
which says what it needs.

    IMAGE=REPOSITORY@DIGEST tests/deploy/cluster_test.py CHART [FILE_OF_THE_DEFINITION_OF_INFERENCEPOOL]
"""

import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

NAMESPACE, RELEASE, KEY = "kivi-cluster-test", "kivi", "a-key-of-the-test"
TOKENS = 48


def run(*command, wanted=0, stdin=None):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, input=stdin)
    if wanted is not None and done.returncode != wanted:
        sys.exit(f"cluster-test: {' '.join(command)}: status {done.returncode}\n{done.stdout}")
    return done.stdout


def kubectl(*arguments, **options):
    return run("kubectl", "--namespace", NAMESPACE, *arguments, **options)


def get(*arguments):
    return json.loads(kubectl("get", *arguments, "--output", "json"))


def helm(command, *settings):
    return run("helm", command, RELEASE, sys.argv[1], "--namespace", NAMESPACE, "--wait", "--timeout", "5m", *settings)


def wait_for(what, seconds, condition):
    begin = time.monotonic()
    while not (value := condition()):
        if time.monotonic() - begin > seconds:
            sys.exit(f"cluster-test: {what}: not in {seconds} s\n{kubectl('get', 'pods,events', wanted=None)}")
        time.sleep(0.2)
    return value


def passed(text):
    print(f"ok: {text}", flush=True)


def pods():
    """The pods that are not about to end, oldest first."""
    found = [pod for pod in get("pods", "--selector", f"app.kubernetes.io/instance={RELEASE}")["items"]
             if "deletionTimestamp" not in pod["metadata"]]
    return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])


def ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def two_ready():
    found = pods()
    return found if len(found) == 2 and all(map(ready, found)) else None


def name(thing):
    return thing["metadata"]["name"]


class Load:
    """Clients that send requests one after another through the service, every other one streamed. Half of them
    keep their connection, as clients with a pool of connections do."""

    def __init__(self, address, clients=6):
        self.address, self.ended, self.lock = address, threading.Event(), threading.Lock()
        self.good, self.reopened, self.slowest, self.failures = 0, 0, 0.0, []  # lock guards them
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, number):
        keeps, connection, count = number % 2 == 0, None, 0
        while not self.ended.is_set():
            connection = connection or http.client.HTTPConnection(*self.address, timeout=60)
            begin, count = time.monotonic(), count + 1
            wrong, stays = ask(connection, number + count, stream=count % 2 == 0)
            with self.lock:
                self.slowest = max(self.slowest, time.monotonic() - begin)
                if wrong:
                    self.failures.append(("kept: " if keeps else "new: ") + wrong)
                else:
                    self.good += 1
                if keeps and not stays:
                    self.reopened += 1
            if not keeps or not stays:
                connection.close()
                connection = None

    def stop(self):
        """What happened, in words, and the number of failures."""
        self.ended.set()
        for thread in self.threads:
            thread.join()
        text = (f"{len(self.failures)} of {self.good + len(self.failures)} requests failed, the slowest took "
                f"{self.slowest:.1f} s, {self.reopened} kept connections were closed by their reply")
        return "; ".join([text, *sorted(set(self.failures))[:4]]), len(self.failures)


def ask(connection, number, stream):
    """(what is wrong, or ""; whether the connection stays open)."""
    body = {"prompt": f"Once upon a time number {number}", "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
    try:
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
        reply = connection.getresponse()
        text = reply.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, False
    stays = reply.getheader("Connection", "").lower() != "close"
    if reply.status != 200:
        return f"status {reply.status}: {text[:120]}", stays
    if stream:
        return ("" if text.endswith("data: [DONE]\n\n") else "the stream has no end"), stays
    return ("" if json.loads(text)["usage"]["completion_tokens"] == TOKENS else "too few tokens"), stays


def status_of(address, path, key=None):
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        return connection.getresponse().status
    finally:
        connection.close()


def servers():
    """{pod: folder below /proc} of the servers. Empty unless the pods run on this machine and we are root."""
    names, found = {name(pod) for pod in pods()}, {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(v.split("=", 1) for v in (process / "environ").read_text().split("\0") if "=" in v)
            if variables.get("HOSTNAME") in names and "serve" in (process / "cmdline").read_text().split("\0"):
                found[variables["HOSTNAME"]] = process
        except (OSError, UnicodeDecodeError):
            continue
    return found


def check_containers():
    """What the kernel says of the servers' processes."""
    found = servers()
    for process in found.values():
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        status = {key: value.split() for key, value in status.items()}
        mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
        assert set(status["Uid"]) == {"10001"} and set(status["Gid"]) == {"10001"}, status
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"]), status
        assert all(int(status[kind][0], 16) == 0 for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh")), status
        assert any(m[1] == "/" and "ro" in m[3].split(",") for m in mounts), "the root can be written to"
        assert not any("serviceaccount" in m[1] for m in mounts), "the pod has a token of the API"
    if not found:
        return print("not checked: the processes of the pods, because they are not on this machine")
    passed(f"{len(found)} processes: user 10001, read-only root, no capability, no new privileges, seccomp, no token")


def evict(pod):
    """Asks for the eviction; what the API server said."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    return kubectl("create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", "--filename", "-",
                   stdin=json.dumps(body), wanted=None)


def under_load(address, what, action):
    """Runs the action under load, and 5 s more; no request may fail."""
    load, begin = Load(address), time.monotonic()
    time.sleep(2)
    action()
    seconds = time.monotonic() - begin
    time.sleep(5)
    text, failed = load.stop()
    assert failed == 0, f"{what}: {text}"
    passed(f"{what} in {seconds:.0f} s: {text}")


def check_eviction():
    first, second = two_ready()
    said = evict(name(first))
    assert '"Success"' in said, said
    said = evict(name(second))
    assert "disruption budget" in said, said
    wait_for("two pods after the eviction", 120, two_ready)
    assert name(first) not in map(name, pods())
    wait_for("the end of the evicted pod", 120, lambda: len(get("pods")["items"]) == 2)


def check_slices():
    """While a pod ends, the service's endpoints say so, and its server still answers."""
    pod = name(two_ready()[0])
    kubectl("delete", "pod", pod, "--wait=false")

    def ends():
        for part in get("endpointslices", "--selector", f"kubernetes.io/service-name={RELEASE}")["items"]:
            for endpoint in part["endpoints"] or ():
                if endpoint["targetRef"]["name"] == pod and not endpoint["conditions"]["ready"]:
                    return endpoint
        return None

    endpoint = wait_for("the endpoint of a pod that ends", 10, ends)
    assert endpoint["conditions"]["terminating"], endpoint
    address = (endpoint["addresses"][0], 8000)
    wait_for("/health/ready of 503", 5, lambda: status_of(address, "/health/ready") == 503)
    assert status_of(address, "/v1/models", KEY) == 200
    wrong, stays = ask(http.client.HTTPConnection(*address, timeout=10), 1, stream=False)
    assert wrong == "" and not stays, (wrong, stays)
    passed("a pod that ends: its endpoint is not ready, /health/ready is 503, and it still takes a request")
    wait_for("two pods", 120, two_ready)
    wait_for("the end of the pod", 120, lambda: len(get("pods")["items"]) == 2)


def check_crash(address):
    """A server that dies: its container starts again. Requests fail that are on it, and those that the service
    sends to it before its endpoint is not ready."""
    found = servers()
    if not found:
        return print("not checked: a crash, because the pods are not on this machine")
    load = Load(address)
    time.sleep(2)
    pod, process = found.popitem()
    os.kill(int(process.name), signal.SIGKILL)
    begin = time.monotonic()

    def again():
        state = get("pod", pod)
        return ready(state) and state["status"]["containerStatuses"][0]["restartCount"] == 1

    wait_for("the restart of a server that was killed", 60, again)
    seconds = time.monotonic() - begin
    failures = len(load.failures)
    time.sleep(5)
    text, failed = load.stop()
    assert failed == failures, f"failures after the restart: {text}"
    passed(f"one server killed, ready again in {seconds:.1f} s: {text}")


def main():
    repository, digest = os.environ["IMAGE"].split("@")
    kubectl("create", "namespace", NAMESPACE)
    try:
        begin = time.monotonic()
        helm("install", "--set", f"image.repository={repository},image.digest={digest},apiKeys.keys={{{KEY}}}",
             "--set", "resources.requests.cpu=" + os.environ.get("CPU", "500m"))
        assert two_ready(), kubectl("get", "pods")
        passed(f"helm install --wait: two pods are ready in {time.monotonic() - begin:.0f} s")
        service = get("service", RELEASE)["spec"]
        address = service["clusterIP"], 8000
        wrong, _ = ask(http.client.HTTPConnection(*address, timeout=30), 0, stream=False)
        assert wrong == "", wrong
        assert (status_of(address, "/v1/models"), status_of(address, "/v1/models", KEY)) == (401, 200)
        passed("through the service: a completion with the key, 401 without")
        restarts = sum(c["restartCount"] for pod in pods() for c in pod["status"]["containerStatuses"])
        assert restarts == 0, restarts
        check_containers()
        check_slices()
        under_load(address, "helm upgrade of two pods", lambda: (
            helm("upgrade", "--reuse-values", "--set-string", "podAnnotations.upgraded=yes"),
            wait_for("the end of the old pods", 120, lambda: len(get("pods")["items"]) == 2)))
        under_load(address, "helm rollback", lambda: (
            run("helm", "rollback", RELEASE, "--namespace", NAMESPACE, "--wait"),
            wait_for("the end of the old pods", 120, lambda: len(get("pods")["items"]) == 2)))
        under_load(address, "eviction of one pod, refusal of the second's", check_eviction)
        check_crash(address)
        kubectl("scale", "deployment", RELEASE, "--replicas=1")
        wait_for("one pod", 120, lambda: len(get("pods")["items"]) == 1)
        budget = get("poddisruptionbudget", RELEASE)["status"]
        assert budget["disruptionsAllowed"] == 0, budget
        kubectl("scale", "deployment", RELEASE, "--replicas=2")
        wait_for("two pods", 120, two_ready)
        passed("scaled to one pod, which the disruption budget keeps, and back to two")
        before = sorted(map(name, two_ready()))
        helm("upgrade", "--reuse-values", "--set", "autoscaling.kind=hpa")
        time.sleep(3)
        assert get("horizontalpodautoscaler", RELEASE)["spec"]["minReplicas"] == 2
        assert sorted(map(name, pods())) == before, "the upgrade that turns the autoscaler on has ended a pod"
        passed("autoscaling.kind=hpa: the HorizontalPodAutoscaler is accepted, and both pods stay")
        policy = get("networkpolicy", RELEASE)["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"] and "egress" not in policy, policy
        passed("the network policy is accepted")
        if len(sys.argv) > 2:
            run("kubectl", "apply", "--server-side", "--filename", sys.argv[2])
            run("kubectl", "wait", "--for=condition=Established", "crd/inferencepools.inference.networking.k8s.io")
            helm("upgrade", "--reuse-values", "--set", "inferencePool.enabled=true,kvEvents.enabled=true",
                 "--set", "settings.GATEWAY_HEADERS=true")
            pool = get("inferencepools.inference.networking.k8s.io", RELEASE)["spec"]
            assert pool["targetPorts"] == [{"number": 8000}], pool
            wrong, _ = ask(http.client.HTTPConnection(*address, timeout=30), 0, stream=False)
            assert wrong == "", wrong
            passed("inferencePool.enabled=true: the InferencePool is accepted; pods with KV events are ready")
        else:
            print("not checked: InferencePool, because no file of its definition is named")
        run("helm", "uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        wait_for("the end of the pods", 120, lambda: not get("pods")["items"])
        left = kubectl("get", "all,networkpolicies,poddisruptionbudgets,secrets", "--output", "name")
        assert RELEASE not in left, left
        passed("helm uninstall leaves nothing")
    finally:
        run("kubectl", "delete", "namespace", NAMESPACE, wanted=None)
    print("cluster-test: passed")


if __name__ == "__main__":
    main()
