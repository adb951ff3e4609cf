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


if __name__ == "__main__":
    unittest.main()
