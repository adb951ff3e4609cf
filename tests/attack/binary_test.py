#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The program as it was built: what makes a memory error hard to use, and what it is made of.

    BINARY_UNDER_TEST=build/kivi tests/attack/binary_test.py [-k NAME]
"""

import json
import pathlib
import platform
import re
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from harness import KIVI, ROOT  # noqa: E402

# ELF's numbers (System V gABI, and the GNU extensions).
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PT_GNU_STACK, PT_GNU_RELRO = 0x6474e551, 0x6474e552
PF_X, PF_W = 1, 2
DT_NULL, DT_FLAGS, DT_FLAGS_1, DT_TEXTREL, DT_RPATH, DT_RUNPATH = 0, 30, 0x6ffffffb, 22, 15, 29
DF_BIND_NOW, DF_1_NOW, DF_1_PIE = 8, 1, 0x08000000
ET_DYN = 3


class Elf:
    """As much of a 64-bit little-endian ELF file as the tests need."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()
        assert self.data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
        self.type = self.unpack("<H", 16)[0]
        segments, sections = self.unpack("<QQ", 32)
        size, count, section_size, section_count, names = self.unpack("<HHHHH", 54)
        self.segments = []  # (type, flags, offset, bytes in the file)
        for i in range(count):
            kind, flags, offset = self.unpack("<IIQ", segments + i * size)
            self.segments.append((kind, flags, offset,
                                  self.unpack("<Q", segments + i * size + 32)[0]))
        headers = []
        for i in range(section_count):
            at = sections + i * section_size
            name, _ = self.unpack("<II", at)
            address, offset, length = self.unpack("<QQQ", at + 16)
            headers.append((name, address, offset, length))
        text = headers[names][2]
        self.sections = {self.string(text + name): (address, offset, length)
                         for name, address, offset, length in headers}

    def unpack(self, layout, at):
        return struct.unpack_from(layout, self.data, at)

    def string(self, at):
        return self.data[at:self.data.index(b"\0", at)].decode()

    def segments_of(self, kind):
        return [s for s in self.segments if s[0] == kind]

    def dynamic(self):
        """{tag: value}; of tags that come more than once, the last."""
        _, _, offset, length = self.segments_of(PT_DYNAMIC)[0]
        entries = {}
        for at in range(offset, offset + length, 16):
            tag, value = self.unpack("<qQ", at)
            if tag == DT_NULL:
                break
            entries[tag] = value
        return entries

    def symbols(self, table=".dynsym", names=".dynstr"):
        """{name: address}; 0 for what the program imports."""
        if table not in self.sections:
            return {}
        _, offset, length = self.sections[table]
        text = self.sections[names][1]
        found = {}
        for at in range(offset, offset + length, 24):
            name = self.unpack("<I", at)[0]
            found[self.string(text + name)] = self.unpack("<Q", at + 8)[0]
        return found

    def bytes_at(self, address, count):
        for base, offset, length in self.sections.values():
            if base != 0 and base <= address < base + length:
                return self.data[offset + address - base:offset + address - base + count]
        raise AssertionError(f"no section holds address {address:#x}")


class Hardening(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.elf = Elf(KIVI)
        debug = cls.elf.sections.get(".debug_str")
        text = cls.elf.data[debug[1]:debug[1] + debug[2]] if debug else b""
        # GCC records its flags with every object that has debug information: ours, not the archives'.
        cls.flags = sorted(set(re.findall(rb"GNU C\+\+[^\0]*", text)))
        if any(b"-fsanitize" in flags for flags in cls.flags):
            raise unittest.SkipTest("a build with sanitizers is not hardened")

    def test_it_is_position_independent(self):
        self.assertEqual(self.elf.type, ET_DYN)
        self.assertTrue(self.elf.segments_of(PT_INTERP))
        self.assertTrue(self.elf.dynamic()[DT_FLAGS_1] & DF_1_PIE)
        self.assertNotIn(DT_TEXTREL, self.elf.dynamic())

    def test_no_memory_is_writable_and_executable(self):
        (_, flags, _, _), = self.elf.segments_of(PT_GNU_STACK)
        self.assertFalse(flags & PF_X, "the stack is executable")
        for _, flags, offset, _ in self.elf.segments_of(PT_LOAD):
            self.assertNotEqual(flags & (PF_W | PF_X), PF_W | PF_X, f"segment at {offset:#x}")

    def test_the_tables_of_the_linker_are_read_only_before_main(self):
        self.assertTrue(self.elf.segments_of(PT_GNU_RELRO))
        dynamic = self.elf.dynamic()
        self.assertTrue(dynamic.get(DT_FLAGS, 0) & DF_BIND_NOW or
                        dynamic.get(DT_FLAGS_1, 0) & DF_1_NOW, "symbols are bound late")

    def test_our_objects_have_the_stack_protector_and_fortified_calls(self):
        imports = self.elf.symbols()
        self.assertIn("__stack_chk_fail", imports)
        self.assertTrue([name for name in imports if re.fullmatch(r"__\w+_chk", name)])
        if not self.flags:
            self.skipTest("no debug information: the flags of single objects are not known")
        for flags in self.flags:
            self.assertIn(b"-fstack-protector-strong", flags)

    def test_indirect_calls_land_on_marked_functions(self):
        if platform.machine() != "x86_64":
            self.skipTest("CET is x86's")
        for flags in self.flags:
            self.assertIn(b"-fcf-protection", flags)
        main = self.elf.symbols(".symtab", ".strtab").get("main")
        if main is None:
            self.skipTest("no symbol table")
        self.assertEqual(self.elf.bytes_at(main, 4), bytes.fromhex("f30f1efa"), "main has no endbr64")


class BillOfMaterials(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        build = pathlib.Path(KIVI).resolve().parent
        if not (build / "build.ninja").exists() or not pathlib.Path("/var/lib/dpkg").exists():
            raise unittest.SkipTest("no build folder of ninja's, or no dpkg")
        made = subprocess.run([str(ROOT / "scripts" / "sbom"), str(build)], capture_output=True,
                              text=True)
        if made.returncode != 0:
            raise AssertionError(made.stderr)
        cls.document = json.loads(made.stdout)

    def test_it_is_a_cyclonedx_document_of_this_program(self):
        self.assertEqual(self.document["bomFormat"], "CycloneDX")
        self.assertEqual(self.document["specVersion"], "1.5")
        self.assertEqual(self.document["metadata"]["component"]["name"], "kivi")
        references = [c["bom-ref"] for c in self.document["components"]]
        self.assertEqual(len(references), len(set(references)))
        self.assertEqual(self.document["dependencies"][0]["dependsOn"], references)

    def test_it_names_what_is_static_shared_and_in_headers_with_dpkgs_versions(self):
        use = {c["name"]: c["properties"][0]["value"] for c in self.document["components"]}
        for name, kind in (("libssl3", "shared"), ("libc6", "shared"), ("libspdlog1.10", "shared"),
                           ("nlohmann-json3-dev", "header"), ("libboost1.81-dev", "header")):
            self.assertEqual(use.get(name), kind, f"{name}; all: {use}")
        self.assertIn("static", use.values())
        names = [c["name"] for c in self.document["components"] if "purl" in c]
        versions = subprocess.run(["dpkg-query", "-W", "-f=${Package} ${Version}\n", *names],
                                  capture_output=True, text=True, check=True).stdout.split("\n")
        known = dict(line.split() for line in versions if line)
        for c in self.document["components"]:
            if "purl" in c:
                self.assertEqual(c["version"], known[c["name"]])


if __name__ == "__main__":
    unittest.main()
