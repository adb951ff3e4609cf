#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Reads the files of a release, as scripts/release made them: checksums, bills of materials, and, with --cuda,
the package kivi-cuda and the wheel with two programs. Nothing is installed. Run by scripts/release-test.

    tests/scripts/release_files_test.py FOLDER [--cuda]      (dpkg-deb, objdump)
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile

FOLDER, CUDA = None, False
BILL = "doc/kivi/sbom.cdx.json"
CUBLAS = "libcublasLt.so.13"


def output(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


class Unpacked:
    """A Debian package: its control fields, and its files in a temporary folder."""

    def __init__(self, path):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        subprocess.run(["dpkg-deb", "-R", str(path), str(self.root)], check=True)
        control = (self.root / "DEBIAN/control").read_text()
        self.fields = dict(re.findall(r"^([\w-]+): (.*)$", control, re.MULTILINE))
        self.files = {str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file()}

    def dynamic(self, tag):
        """The values of a tag of the program's dynamic section."""
        return re.findall(rf"^  {tag} +(\S+)$", output("objdump", "-p", str(self.root / "usr/bin/kivi")),
                          re.MULTILINE)


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kivi = Unpacked(next(FOLDER.glob("kivi_*.deb")))
        cls.wheel = zipfile.ZipFile(next(FOLDER.glob("*.whl")))

    @classmethod
    def tearDownClass(cls):
        cls.kivi.folder.cleanup()

    def check_bill(self, text, *more):
        bill = json.loads(text)
        self.assertEqual((bill["bomFormat"], bill["specVersion"]), ("CycloneDX", "1.5"))
        program = bill["metadata"]["component"]
        self.assertEqual((program["name"], program["version"]), ("kivi", self.kivi.fields["Version"]))
        names = {component["name"] for component in bill["components"]}
        self.assertLessEqual({"libssl3", "libc6", "libgrpc++-dev", *more}, names)

    def check_sums(self, package):
        subprocess.run(["md5sum", "--check", "--quiet", "--strict", "DEBIAN/md5sums"], cwd=package.root, check=True)
        listed = {line.split("  ", 1)[1] for line in
                  (package.root / "DEBIAN/md5sums").read_text().splitlines()}
        self.assertEqual(listed, {f for f in package.files if not f.startswith("DEBIAN/")})

    def test_the_checksums_are_those_of_all_other_files(self):
        lines = [line.split("  ") for line in (FOLDER / "SHA256SUMS").read_text().splitlines()]
        self.assertEqual({name: digest for digest, name in lines},
                         {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                          for path in FOLDER.iterdir() if path.name != "SHA256SUMS"})

    def test_tarball_wheel_and_package_say_what_the_program_is_made_of(self):
        archive = tarfile.open(next(FOLDER.glob("*.tar.gz")))
        top = archive.getnames()[0].split("/")[0]
        self.check_bill(archive.extractfile(f"{top}/share/{BILL}").read())
        self.check_bill(self.wheel.read("kivi/doc/sbom.cdx.json"))
        self.check_bill((self.kivi.root / "usr/share" / BILL).read_text())

    def test_the_checksums_of_the_package_are_those_of_its_files(self):
        self.check_sums(self.kivi)

    def test_without_a_cuda_build_nothing_of_cuda_is_there(self):
        if CUDA:
            return
        self.assertEqual(list(FOLDER.glob("kivi-cuda*")), [])
        self.assertFalse([name for name in self.wheel.namelist() if "cuda" in name])


class Cuda(Files):
    """Also the tests above, which must hold with the program with CUDA too."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cuda = Unpacked(next(FOLDER.glob("kivi-cuda_*.deb")))

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.cuda.folder.cleanup()

    def test_the_package_for_gpus_takes_the_place_of_the_one_without(self):
        fields, version = self.cuda.fields, self.kivi.fields["Version"]
        self.assertEqual(fields["Package"], "kivi-cuda")
        self.assertEqual(fields["Version"], version)
        self.assertEqual(fields["Architecture"], "amd64")
        self.assertEqual(fields["Provides"], f"kivi (= {version})")
        self.assertEqual((fields["Conflicts"], fields["Replaces"]), ("kivi", "kivi"))

    def test_it_depends_on_the_same_libraries_and_on_cublas(self):
        depends = self.cuda.fields["Depends"]
        self.assertTrue(depends.startswith(self.kivi.fields["Depends"] + ", "), depends)
        self.assertRegex(depends, r", libcublas-13-0( \| libcublas-13-\d+)*$")
        self.assertEqual(set(self.cuda.dynamic("NEEDED")) - set(self.kivi.dynamic("NEEDED")), {CUBLAS})

    def test_its_program_looks_for_cublas_where_nvidias_packages_put_it(self):
        path, = self.cuda.dynamic("RUNPATH")
        self.assertIn("/usr/local/cuda-13/targets/x86_64-linux/lib", path.split(":"))
        self.assertEqual(self.cuda.dynamic("RPATH"), [])

    def test_it_holds_the_same_files(self):
        self.assertEqual(self.cuda.files, self.kivi.files)
        self.check_sums(self.cuda)
        self.assertNotEqual((self.cuda.root / "usr/bin/kivi").read_bytes(),
                            (self.kivi.root / "usr/bin/kivi").read_bytes())
        self.check_bill((self.cuda.root / "usr/share" / BILL).read_text(), CUBLAS)

    def test_the_wheel_has_both_programs_with_a_bill_each_and_names_the_package_of_cublas(self):
        names = self.wheel.namelist()
        for program in ("kivi", "kivi-cuda"):
            mode = self.wheel.getinfo(f"kivi/bin/{program}").external_attr >> 16
            self.assertEqual(mode, 0o100755)
        self.check_bill(self.wheel.read("kivi/doc/sbom-cuda.cdx.json"), CUBLAS)
        metadata, = (name for name in names if name.endswith(".dist-info/METADATA"))
        self.assertRegex(self.wheel.read(metadata).decode(),
                         r'Requires-Dist: nvidia-cublas<14,>=13; extra == "cuda"')
        self.assertFalse([name for name in names if "cublas" in name], "cuBLAS must not be in the wheel")


if __name__ == "__main__":
    CUDA = "--cuda" in sys.argv
    FOLDER = pathlib.Path([word for word in sys.argv[1:] if word != "--cuda"][0])
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(Cuda if CUDA else Files)
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(tests).wasSuccessful())
