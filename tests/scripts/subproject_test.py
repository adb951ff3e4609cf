#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Another project takes this one in with add_subdirectory, and its own settings win. Configures such a
project and builds nothing."""

import json
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUTER = f"""cmake_minimum_required(VERSION 3.25)
project(outer LANGUAGES CXX)
add_subdirectory("{ROOT}" inner)
add_executable(outer outer.cpp)
target_link_libraries(outer PRIVATE kivi_base)
"""


class Subproject(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="kivi-outer-")
        cls.addClassCleanup(folder.cleanup)
        source = pathlib.Path(folder.name)
        (source / "CMakeLists.txt").write_text(OUTER)
        (source / "outer.cpp").write_text('#include "base/utf8.h"\nint main() { return 0; }\n')
        cls.build = source / "build"
        run = subprocess.run(
            ["cmake", "-G", "Ninja", "-S", source, "-B", cls.build, "-DCMAKE_BUILD_TYPE=Release",
             "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DOUTER", "-DKIVI_CUDA=OFF", "-DKIVI_TESTS=OFF",
             "-DKIVI_BENCHMARKS=OFF"], capture_output=True, text=True)
        if run.returncode != 0:
            raise AssertionError(run.stdout + run.stderr)
        commands = json.loads((cls.build / "compile_commands.json").read_text())
        cls.commands = {pathlib.Path(entry["file"]): entry["command"] for entry in commands}

    def test_the_flags_of_the_outer_project_are_those_of_our_sources(self):
        command = self.commands[ROOT / "base/utf8.cpp"]
        self.assertIn("-O1 -DOUTER", command)
        self.assertNotIn("-O2", command)

    def test_the_outer_project_links_our_libraries_and_has_our_program(self):
        for target, wanted in (("outer", "libkivi_base.a"), ("kivi", "main.cpp")):
            lines = subprocess.run(["ninja", "-C", self.build, "-t", "commands", target],
                                   capture_output=True, text=True, check=True).stdout
            self.assertIn(wanted, lines)

    def test_the_outer_project_makes_its_own_packages(self):
        self.assertFalse((self.build / "CPackConfig.cmake").exists())


if __name__ == "__main__":
    unittest.main()
