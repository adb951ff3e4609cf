# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: linted and rendered by the program `helm` with several values, every object valid by its
schema, and what the objects must say. Run by scripts/helm-test, which installs the tools.

    HELM=PROGRAM tests/deploy/chart_test.py CHART [FOLDER_WITH_CRDS]
"""

import base64
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

import custom_resources

VERSIONS = ("1.30", "1.33", "1.37")  # of Kubernetes
ALL = {"apiKeys": {"keys": ["one", "two"]}, "kvEvents": {"enabled": True}, "gpus": 2,
       "inferencePool": {"enabled": True}, "serviceMonitor": {"enabled": True, "labels": {"team": "a"}},
       "model": {"path": "/models/m", "name": "m", "existingClaim": "models"},
       "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "priorityClassName": "high",
       "imagePullSecrets": [{"name": "pull"}], "nodeSelector": {"gpu": "h200"},
       "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
       "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                                      "whenUnsatisfiable": "ScheduleAnyway"}],
       "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
       "image": {"repository": "registry.example/kivi", "digest": "sha256:" + "0" * 64}}
CASES = {
    "open": {"allowOpen": True},
    "keys": {"apiKeys": {"existingSecret": "mine"}},
    "all, hpa": {**ALL, "autoscaling": {"kind": "hpa"}},
    "all, keda": {**ALL, "autoscaling": {"kind": "keda"}},
    "no extras": {"allowOpen": True, "networkPolicy": {"enabled": False},
                  "podDisruptionBudget": {"enabled": False}},
}


def crd_schemas(folder):
    """{(apiVersion, kind): schema} of the definitions in a folder's YAML files."""
    schemas = {}
    for path in pathlib.Path(folder).glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document["kind"] == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = (
                        version["schema"]["openAPIV3Schema"])
    return schemas


def closed(schema):
    """The schema with unknown properties refused, as an API server prunes them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    if "properties" in out and not schema.get("x-kubernetes-preserve-unknown-fields") and isinstance(
            schema["properties"], dict) and schema.get("type") == "object":
        out.setdefault("additionalProperties", False)
    return out


def helm(*arguments):
    """Runs helm without a cluster, in a home of its own: (whether it succeeded, what it printed)."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [os.environ["HELM"], *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"HOME": home, "PATH": os.environ["PATH"], "KUBECONFIG": f"{home}/none"})
    return done.returncode == 0, done.stdout


def with_values(command, values, *arguments):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        return helm(*command, "--values", file.name, *arguments)


def render(chart, values, version):
    """The objects for a version of Kubernetes; an AssertionError with helm's words if it refuses."""
    good, text = with_values(["template", "demo", chart, "--namespace", "models"], values,
                             "--kube-version", version)
    assert good, text
    return [thing for thing in yaml.safe_load_all(text) if thing]


def check(objects, version, definitions):
    """Every object by the schema of its kind. Returns how many are of a kind that Kubernetes does not know."""
    custom = 0
    for thing in objects:
        name = thing["apiVersion"], thing["kind"]
        if name not in custom_resources.SPECS:
            kubernetes_validate.validate(thing, version, strict=True)
            continue
        custom += 1
        custom_resources.validate(thing)
        if definitions:
            body = {k: v for k, v in thing.items() if k not in ("apiVersion", "kind", "metadata")}
            schema = closed(definitions[name])
            for known in ("apiVersion", "kind", "metadata"):
                schema.get("properties", {}).pop(known, None)
            jsonschema.validate(body, schema)
    return custom


def one(objects, kind):
    found = [o for o in objects if o["kind"] == kind]
    assert len(found) == 1, (kind, len(found))
    return found[0]


def check_meaning(objects):
    """What the objects say together, of the case with everything on."""
    deployment = one(objects, "Deployment")
    pod = deployment["spec"]["template"]
    container, = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for thing in (one(objects, "Service")["spec"]["selector"],
                  one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                  one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
                  one(objects, "InferencePool")["spec"]["selector"]["matchLabels"],
                  deployment["spec"]["selector"]["matchLabels"]):
        assert thing.items() <= labels.items(), (thing, labels)
    service, monitor = one(objects, "Service"), one(objects, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {e["port"] for e in monitor["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}
    numbers = {p["containerPort"] for p in container["ports"]}
    assert {p["number"] for p in one(objects, "InferencePool")["spec"]["targetPorts"]} <= numbers
    scaler, = [o for o in objects if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"], scaler
    if scaler["kind"] == "ScaledObject":
        query = scaler["spec"]["triggers"][0]["metadata"]["query"]
        wanted = f'kivi:num_requests_waiting{{namespace="models",service="{service["metadata"]["name"]}"}}'
        assert query == f"sum({wanted})", query
    picker = yaml.safe_load(pathlib.Path("deploy/llm-d/endpoint-picker.yaml").read_text())
    engines = [engine["name"] for plugin in picker["plugins"] if plugin["type"] == "core-metrics-extractor"
               for engine in plugin["parameters"]["engineConfigs"]]
    assert engines == [labels["llm-d.ai/engine-type"]], engines
    assert "replicas" not in deployment["spec"], "the autoscaler sets the replicas"
    assert container["image"] == "registry.example/kivi@sha256:" + "0" * 64, container["image"]
    assert container["resources"]["limits"] == {"memory": "2Gi", "nvidia.com/gpu": 2}
    ports = {p["name"] for p in container["ports"]}
    for rule in one(objects, "NetworkPolicy")["spec"]["ingress"]:
        assert {p["port"] for p in rule["ports"]} <= ports
    assert {p["targetPort"] for p in one(objects, "Service")["spec"]["ports"]} <= ports
    keys = base64.b64decode(one(objects, "Secret")["data"]["api-keys"]).decode()
    assert keys == "one\ntwo", keys
    names = [e["name"] for e in container["env"]]
    assert len(names) == len(set(names)), "a variable is there twice"
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    settings = {e["name"]: e.get("value") for e in container["env"]}
    delay, timeout = (int(settings["KIVI_" + name]) for name in ("DRAIN_DELAY", "SHUTDOWN_TIMEOUT"))
    assert delay > 0 and grace > delay + timeout + 10, "a drain is cut short"
    return settings


def check_variables(settings, known_path):
    """Every variable of the container is one that kivi knows."""
    known = pathlib.Path(known_path).read_text()
    for name in settings:
        if name.startswith("KIVI_"):
            flag = "--" + name.removeprefix("KIVI_").lower().replace("_", "-")
            assert f"`{flag}" in known or name == "KIVI_MODEL", f"{name} is no setting of kivi"


def check_guide(chart, page):
    """The guide's values are the chart's: its commands are rendered one upon another, as --reuse-values does.
    Returns how many values the guide sets."""
    defaults = yaml.safe_load(pathlib.Path(chart, "values.yaml").read_text())
    # The shell takes the quotes away. Its variables stay as they are, because any text will do for them.
    sets = [word.replace('"', "") for word in re.findall(r"--set (\S+)", pathlib.Path(page).read_text())]
    for name in (setting.split("=")[0].split(".") for setting in sets):
        place = defaults
        for part in name if name[0] != "settings" else name[:1]:
            assert part in place, f"{page} sets {'.'.join(name)}, which is no value of the chart"
            place = place[part]
    good, text = helm("template", "kivi", chart, "--namespace", "models",
                      *(word for setting in sets for word in ("--set", setting)))
    assert good, text
    objects = [thing for thing in yaml.safe_load_all(text) if thing]
    container, = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"name": "KIVI_GATEWAY_HEADERS", "value": "true"} in container["env"], container["env"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 1}
    one(objects, "InferencePool")
    return len(sets)


def main():
    chart, definitions = sys.argv[1], {}
    if len(sys.argv) > 2:
        definitions = crd_schemas(sys.argv[2])
    print("helm", re.search(r'Version:"([^"]+)"', helm("version")[1]).group(1))
    for name, values in CASES.items():
        good, text = with_values(["lint", "--strict", chart], values)
        assert good and "[WARNING]" not in text, (name, text)
    print(f"ok: linted strictly with {len(CASES)} sets of values")
    count, custom = 0, 0
    for version in VERSIONS:
        for name, values in CASES.items():
            objects = render(chart, values, version)
            custom += check(objects, version, definitions)
            count += len(objects)
            if name.startswith("all"):
                settings = check_meaning(objects)
    assert custom == 5 * len(VERSIONS), custom  # a pool and a monitor in two cases, a ScaledObject in one
    print(f"ok: {count - custom} objects are valid by the schemas of Kubernetes {', '.join(VERSIONS)}")
    print(f"ok: {custom} InferencePools, ServiceMonitors and ScaledObjects are valid by tests/deploy/custom_resources.py"
          + (" and by their definitions" if definitions else ""))
    broken = sum(custom_resources.check_refusals(thing)
                 for thing in render(chart, CASES["all, keda"], VERSIONS[0])
                 if (thing["apiVersion"], thing["kind"]) in custom_resources.SPECS)
    print(f"ok: {broken} broken copies of these are refused")
    check_variables(settings, "docs/configuration.md")
    print("ok: selectors, ports, image, keys, times, autoscalers and variables agree with each other")
    for values, wanted in (({}, "apiKeys"), ({"allowOpen": True, "autoscaling": {"kind": "vpa"}},
                                             "must be none, hpa or keda")):
        good, text = with_values(["template", "demo", chart], values)
        assert not good and wanted in text, text
    print("ok: no keys, or an unknown autoscaler, is refused by name")
    print(f"ok: {check_guide(chart, 'docs/guides/kubernetes.md')} values that the guide sets are the chart's")
    subprocess.run([sys.executable, "-m", "yamllint", "-d",
                    "{extends: relaxed, rules: {line-length: {max: 120}}}",
                    f"{chart}/values.yaml", f"{chart}/Chart.yaml"], check=True)
    print("ok: yamllint")


if __name__ == "__main__":
    main()
