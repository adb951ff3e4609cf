#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Fails if the files that state the program's version disagree."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def stated(path, pattern):
    found = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
    assert found, f"{path} has no line that matches {pattern}"
    return found.group(1)


class Version(unittest.TestCase):
    def setUp(self):
        self.version = stated("CMakeLists.txt", r"^project\(kivi VERSION (\S+)")

    def test_the_newest_entry_of_the_changelog_is_the_version_that_is_built(self):
        self.assertEqual(stated("CHANGELOG.md", r"^## (\d+\.\d+\.\d+)"), self.version)

    def test_the_image_is_labeled_with_the_version_that_is_built(self):
        self.assertEqual(stated("docker/Dockerfile", r"^ARG VERSION=(\S+)"), self.version)

    def test_the_chart_has_the_version_that_is_built(self):
        chart = "deploy/helm/kivi/Chart.yaml"
        self.assertEqual(stated(chart, r"^version: (\S+)"), self.version)
        self.assertEqual(stated(chart, r'^appVersion: "(\S+)"'), self.version)

    def test_pages_name_the_packages_that_are_built(self):
        named = 0
        for path in sorted((ROOT / "docs").rglob("*.md")):
            if "benchmarks" in path.parts:
                continue  # what was measured keeps its version
            for name, version in re.findall(r"(kivi(?:-\w+|_server)?[_-])(\d+\.\d+\.\d+)[_-]",
                                            path.read_text()):
                named += 1
                self.assertEqual(version, self.version, f"{path.name} names {name}{version}")
        self.assertGreater(named, 0)


if __name__ == "__main__":
    unittest.main()
