#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The settings of llm-d's endpoint picker: what they name is there. No picker runs here; this reads
deploy/llm-d/endpoint-picker.yaml and asks a real `kivi serve` for the metrics that it names.

    tests/deploy/picker_test.py [KIVI]      default: build/kivi; Debian's python3-yaml"""

import re
import sys
import tempfile
import unittest

import yaml

from fleet import ROOT, Replica, get

KIVI = str(ROOT / "build" / "kivi")
SPECS = {"queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec", "cacheInfoSpec"}


def samples(text, name):
    """[(labels, value)] of a metric in Prometheus' text format."""
    found = re.findall(rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]


class Picker(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.settings = yaml.safe_load((ROOT / "deploy/llm-d/endpoint-picker.yaml").read_text())
        cls.plugins = {plugin.get("name", plugin["type"]): plugin for plugin in cls.settings["plugins"]}
        extractor, = (p for p in cls.plugins.values() if p["type"] == "core-metrics-extractor")
        cls.parameters = extractor["parameters"]
        cls.engine, = cls.parameters["engineConfigs"]

    def metrics(self, *arguments):
        with tempfile.NamedTemporaryFile(mode="w+", prefix="kivi-picker-", suffix=".log") as log:
            replica = Replica(KIVI, log, *arguments)
            replica.start()
            try:
                status, text = get(replica.port, "/metrics")
            finally:
                replica.kill()
        self.assertEqual(status, 200)
        return text

    def check(self, text, rename):
        for key in SPECS:
            found = samples(text, rename(self.engine[key]))
            self.assertEqual(len(found), 1, f"{key}: {rename(self.engine[key])}")
            labels, value = found[0]
            if key == "cacheInfoSpec":
                self.assertEqual(value, 1)
                self.assertGreater(int(labels["block_size"]), 0)
                self.assertGreater(int(labels["num_gpu_blocks"]), 0)
            else:
                self.assertEqual(value, 0, f"{key}: nothing has been asked")

    def test_every_metric_that_the_settings_name_is_at_a_server(self):
        self.assertEqual(set(self.engine) - {"name"}, SPECS)
        self.check(self.metrics(), lambda name: name)

    def test_with_the_prefix_vllm_the_same_metrics_have_the_names_of_vllm(self):
        self.check(self.metrics("--metrics-prefix", "vllm"),
                   lambda name: name.replace("kivi:", "vllm:"))

    def test_the_engine_is_the_one_that_the_pods_of_the_chart_are_labelled_with(self):
        chart = (ROOT / "deploy/helm/kivi/templates/deployment.yaml").read_text()
        label = re.search(r"^ *llm-d.ai/engine-type: (\S+)$", chart, re.MULTILINE).group(1)
        self.assertEqual(self.engine["name"], label)
        self.assertEqual(self.parameters["defaultEngine"], label)

    def test_every_reference_names_a_plugin_and_every_plugin_is_referred_to(self):
        profile, = self.settings["schedulingProfiles"]
        names = [entry["pluginRef"] for entry in profile["plugins"]]
        for source in self.settings["dataLayer"]["sources"]:
            names += [source["pluginRef"], *(e["pluginRef"] for e in source["extractors"])]
        self.assertEqual(sorted(names), sorted(self.plugins))


if __name__ == "__main__":
    KIVI = sys.argv.pop(1) if len(sys.argv) > 1 else KIVI
    unittest.main()
