# SPDX-License-Identifier: Apache-2.0
"""What the chart's custom resources may say: a schema of the fields that the chart uses, for each kind that
Kubernetes itself does not know. A field that is not listed here is refused, so that a new one is looked up.

Read from the definitions of the Gateway API Inference Extension, prometheus-operator and KEDA of August 2026;
these projects own the names. With their CustomResourceDefinitions at hand, CRD_FOLDER of scripts/helm-test
checks the same objects by the whole definitions."""

import copy

import jsonschema

DURATION = "^[0-9]+(ms|s|m|h)$"
COUNT = {"type": "integer", "minimum": 0}


def closed(required, **properties):
    """An object with these properties alone; `required` names those that must be there."""
    return {"type": "object", "required": required.split(), "properties": properties,
            "additionalProperties": False}


def text(**more):
    return {"type": "string", "minLength": 1, **more}


# As in a Kubernetes label.
LABEL = text(maxLength=63, pattern="^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
SELECTOR = closed("matchLabels", matchLabels={"type": "object", "minProperties": 1,
                                              "additionalProperties": LABEL})
PORT = closed("number", number={"type": "integer", "minimum": 1, "maximum": 65535})

SPECS = {
    # Version v1: `extensionRef` of v1alpha2 and of v1's drafts became `endpointPickerRef`. The port may be
    # left out only if the picker is not a Service.
    ("inference.networking.k8s.io/v1", "InferencePool"): closed(
        "selector targetPorts endpointPickerRef",
        selector=SELECTOR,
        targetPorts={"type": "array", "minItems": 1, "maxItems": 8, "uniqueItems": True, "items": PORT},
        endpointPickerRef=closed("name port", name=text(maxLength=253), port=PORT,
                                 failureMode={"enum": ["FailOpen", "FailClose"]})),
    # `port` is the name of a port of the Service.
    ("monitoring.coreos.com/v1", "ServiceMonitor"): closed(
        "selector endpoints",
        selector=SELECTOR,
        endpoints={"type": "array", "minItems": 1,
                   "items": closed("port path", port=text(), path=text(pattern="^/"),
                                   interval=text(pattern=DURATION))}),
    # Every value of a trigger's metadata is a string, numbers too.
    ("keda.sh/v1alpha1", "ScaledObject"): closed(
        "scaleTargetRef triggers",
        scaleTargetRef=closed("name", name=text()),
        minReplicaCount=COUNT, maxReplicaCount={"type": "integer", "minimum": 1},
        pollingInterval={"type": "integer", "minimum": 1}, cooldownPeriod=COUNT,
        triggers={"type": "array", "minItems": 1, "items": closed(
            "type metadata", type={"enum": ["prometheus"]},
            metadata=closed("serverAddress query threshold", serverAddress=text(pattern="^https?://"),
                            query=text(), threshold=text(pattern=r"^\d+(\.\d+)?$")))}),
}


def validate(thing):
    """Raises a ValidationError if `thing`, of a kind in SPECS, is not valid."""
    spec = SPECS[thing["apiVersion"], thing["kind"]]
    whole = closed("apiVersion kind metadata spec", apiVersion=text(), kind=text(), spec=spec,
                   metadata=closed("name", name=text(maxLength=253), labels={
                       "type": "object", "additionalProperties": LABEL}))
    jsonschema.validate(thing, whole)
    if thing["kind"] == "ScaledObject" and thing["spec"]["minReplicaCount"] > thing["spec"]["maxReplicaCount"]:
        raise jsonschema.ValidationError("minReplicaCount is greater than maxReplicaCount")


def places(value, path=()):
    """The path of every object within `value`, itself included."""
    if isinstance(value, dict):
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield from places(part, (*path, key))


def broken_copies(thing):
    """Copies of a valid object, each with one fault: (what is wrong, copy). An unknown field in an object of
    the spec, a number where a string belongs, or a list without elements."""
    def at(copied, path):
        for key in path:
            copied = copied[key]
        return copied

    for path in places(thing["spec"], ("spec",)):
        if path[-1] != "matchLabels":  # any label may be there
            wrong = copy.deepcopy(thing)
            at(wrong, path)["unknownField"] = "x"
            yield f"{path} with an unknown field", wrong
        for key, value in at(thing, path).items():
            wrong = copy.deepcopy(thing)
            at(wrong, path)[key] = [] if isinstance(value, list) else 7.5
            yield f"{path} with {key} = {at(wrong, path)[key]}", wrong


def check_refusals(thing):
    """Every broken copy of a valid object is refused: the schema sees all of it. Returns how many."""
    count = 0
    for what, wrong in broken_copies(thing):
        try:
            validate(wrong)
        except jsonschema.ValidationError:
            count += 1
        else:
            raise AssertionError(f"{thing['kind']}: {what} is taken for valid")
    return count
