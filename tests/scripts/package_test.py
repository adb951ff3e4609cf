#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the Debian packages of a build folder and reads what is in them.

    tests/scripts/package_test.py BUILD_DIR     (dpkg-deb, and dpkg-shlibdeps of dpkg-dev)
"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

BUILD = None


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        made = subprocess.run(
            ["cpack", "-G", "DEB", "--config", f"{BUILD}/CPackConfig.cmake", "-B", cls.folder.name],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert made.returncode == 0, made.stdout
        cls.packages = {output("dpkg-deb", "-f", str(path), "Package").strip(): str(path)
                        for path in pathlib.Path(cls.folder.name).glob("*.deb")}

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def files(self, package):
        lines = output("dpkg-deb", "-c", self.packages[package]).splitlines()
        return {words[5] for words in map(str.split, lines) if not words[5].endswith("/")}

    def test_there_is_one_package_for_the_program_and_one_for_the_demo_model(self):
        self.assertEqual(set(self.packages), {"kivi", "kivi-models"})

    def test_the_program_comes_with_its_settings_and_documents_and_nothing_else(self):
        files = self.files("kivi")
        beside = ["lib/systemd/system/kivi.service", "share/man/man1/kivi.1",
                  "share/bash-completion/completions/kivi", "share/zsh/vendor-completions/_kivi",
                  "share/fish/vendor_completions.d/kivi.fish"]
        for wanted in ("bin/kivi", "share/kivi/configs/default.json", "share/doc/kivi/LICENSE.md",
                       "share/doc/kivi/NOTICE.md", "share/doc/kivi/CHANGELOG.md",
                       "share/doc/kivi/examples/api-keys.conf", *beside):
            self.assertIn("./usr/" + wanted, files)
        allowed = ("./usr/bin/kivi", "./usr/share/kivi/", "./usr/share/doc/kivi/",
                   *("./usr/" + name for name in beside))
        for file in files:
            self.assertTrue(file.startswith(allowed), file)

    def test_the_model_package_holds_a_whole_model_folder(self):
        files = self.files("kivi-models")
        for wanted in ("config.json", "model.safetensors", "tokenizer.model"):
            self.assertIn(f"./usr/share/kivi/models/tales-llama/{wanted}", files)

    def test_the_packages_state_the_version_and_the_libraries_that_the_program_needs(self):
        path = self.packages["kivi"]
        root = pathlib.Path(__file__).resolve().parents[2]
        version = output("dpkg-deb", "-f", path, "Version").strip()
        self.assertIn(f"project(kivi VERSION {version} ", (root / "CMakeLists.txt").read_text())
        depends = output("dpkg-deb", "-f", path, "Depends")
        for library in ("libc6", "libsentencepiece0", "libssl3"):
            self.assertIn(library, depends)
        self.assertEqual(
            output("dpkg-deb", "-f", self.packages["kivi-models"], "Architecture").strip(), "all")

    def test_the_program_of_the_package_starts(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", self.packages["kivi"], folder], check=True)
            self.assertRegex(output(f"{folder}/usr/bin/kivi", "version"), r"^kivi \d+\.\d+\.\d+\n")


if __name__ == "__main__":
    BUILD = sys.argv.pop(1)
    unittest.main()
