# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: linted, rendered with several values, every object valid by its schema, and what the
objects must say. Run by scripts/helm-test, which installs the tools.

    tests/deploy/chart_test.py CHART [FOLDER_WITH_CRDS]
"""

import base64
import pathlib
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml
from helm_python import HelmError
from helm_python.chart import Chart, lint

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


def render(chart, values):
    objects = []
    for text in chart.render(values=values, name="demo", namespace="models").values():
        if text.strip().startswith(("Kivi Server",)):
            continue  # NOTES.txt
        objects += [o for o in yaml.safe_load_all(text) if o]
    return objects


def check(objects, custom):
    unchecked = set()
    for thing in objects:
        name = thing["apiVersion"], thing["kind"]
        if "." in name[0].split("/")[0] and not name[0].split("/")[0].endswith("k8s.io") or (
                name[0].startswith("inference.")):
            if name not in custom:
                unchecked.add(name)
                continue
            body = {k: v for k, v in thing.items() if k not in ("apiVersion", "kind", "metadata")}
            schema = closed(custom[name])
            for known in ("apiVersion", "kind", "metadata"):
                schema.get("properties", {}).pop(known, None)
            jsonschema.validate(body, schema)
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(thing, version, strict=True)
    return unchecked


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
    service_labels = one(objects, "Service")["metadata"]["labels"]
    assert one(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service_labels.items()
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
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace > int(settings["KIVI_SHUTDOWN_TIMEOUT"]) + pause, "a drain is cut short"
    return settings


def check_variables(settings, known_path):
    """Every variable of the container is one that kivi knows."""
    known = pathlib.Path(known_path).read_text()
    for name in settings:
        if name.startswith("KIVI_"):
            flag = "--" + name.removeprefix("KIVI_").lower().replace("_", "-")
            assert f"`{flag}" in known or name == "KIVI_MODEL", f"{name} is no setting of kivi"


def main():
    chart_folder, custom = sys.argv[1], {}
    if len(sys.argv) > 2:
        custom = crd_schemas(sys.argv[2])
    for name, values in CASES.items():
        report = lint(chart_folder, values, strict=True)
        bad = [m for m in report["messages"] if m["severity"] >= 2]
        assert not bad and not report["errors"], (name, report)
    print(f"ok: linted with {len(CASES)} sets of values, strictly")
    unchecked, count = set(), 0
    with Chart.load(chart_folder) as chart:
        for name, values in CASES.items():
            objects = render(chart, values)
            unchecked |= check(objects, custom)
            count += len(objects)
            if name.startswith("all"):
                settings = check_meaning(objects)
        print(f"ok: {count} objects are valid for Kubernetes {', '.join(VERSIONS)}")
        check_variables(settings, "docs/configuration.md")
        print("ok: selectors, ports, image, keys, times and variables agree with each other")
        for values, wanted in (({}, "apiKeys"), ({"allowOpen": True, "autoscaling": {"kind": "vpa"}},
                                                 "must be none, hpa or keda")):
            try:
                render(chart, values)
            except HelmError as error:
                assert wanted in str(error), error
            else:
                raise AssertionError(f"{values} is rendered")
        print("ok: no keys, or an unknown autoscaler, is refused by name")
    subprocess.run([sys.executable, "-m", "yamllint", "-d",
                    "{extends: relaxed, rules: {line-length: {max: 120}}}",
                    f"{chart_folder}/values.yaml", f"{chart_folder}/Chart.yaml"], check=True)
    print("ok: yamllint")
    if unchecked:
        print("not validated, for want of their definitions:",
              ", ".join(sorted(f"{kind} ({version})" for version, kind in unchecked)))


if __name__ == "__main__":
    main()
