# SPDX-License-Identifier: Apache-2.0
"""The Debian packages of a release: used by scripts/release. CPack makes `kivi` and `kivi-models`; this adds the
bill of materials to `kivi`, and makes `kivi-cuda` of it, which has the program with CUDA in its place.

`kivi-cuda` does not bring cuBLAS along, which is 15 times as large as the rest: it depends on NVIDIA's package
of it for Debian 12, as the wheel depends on nvidia-cublas. All of CUDA 13 have the same interface."""

import pathlib
import re
import shutil
import subprocess
import tempfile

# NVIDIA's package for each minor version of CUDA 13.
CUBLAS = " | ".join(f"libcublas-13-{minor}" for minor in range(4))
# Where these packages put the library: the version that the administrator chose, else the newest.
CUBLAS_PATH = "/usr/local/cuda-13/targets/x86_64-linux/lib:/usr/local/cuda/targets/x86_64-linux/lib"
CUDA_FIELDS = {"Package": "kivi-cuda", "Provides": "kivi (= {version})", "Conflicts": "kivi",
               "Replaces": "kivi", "Depends": "{depends}, " + CUBLAS,
               "Suggests": "kivi-models, cuda-drivers | nvidia-open"}
CUDA_SUMMARY = "Server of language models with a quantized key-value cache, for NVIDIA GPUs"
# What the linker's step makes in the build's folder share/, and its place in the package.
MADE = {"kivi.1": "share/man/man1/kivi.1", "kivi.bash": "share/bash-completion/completions/kivi",
        "_kivi": "share/zsh/vendor-completions/_kivi", "kivi.fish": "share/fish/vendor_completions.d/kivi.fish"}


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def fields_of(control):
    """The fields of a control file, in order; a value keeps its further lines."""
    return dict(re.findall(r"^([\w-]+): ((?:.*)(?:\n .*)*)$", control, re.MULTILINE))


def repack(package, output, change):
    """Writes the package again after change(root, fields), which may alter its files and the fields of its
    control file. Sizes and checksums are those of the files then."""
    with tempfile.TemporaryDirectory() as work:
        root = pathlib.Path(work) / "root"
        run("dpkg-deb", "-R", package, root)
        control = root / "DEBIAN" / "control"
        fields = fields_of(control.read_text())
        change(root, fields)
        files = sorted(path for path in root.rglob("*")
                       if path.is_file() and path.relative_to(root).parts[0] != "DEBIAN")
        fields["Installed-Size"] = str(sum(-(-path.stat().st_size // 1024) for path in files))
        control.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
        sums = subprocess.run(["md5sum", *(str(path.relative_to(root)) for path in files)], cwd=root,
                              check=True, stdout=subprocess.PIPE).stdout
        (root / "DEBIAN" / "md5sums").write_bytes(sums)
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root, output)


def add_bill(package, bill):
    """Puts the bill of materials, a text, among the documents of the package."""
    def change(root, _):
        (root / "usr/share/doc/kivi/sbom.cdx.json").write_text(bill)

    repack(package, package, change)


def make_cuda(package, build, bill, set_path, output):
    """Makes kivi-cuda of the package `kivi` and a build with CUDA. Its program needs the libraries of `package`
    and cuBLAS (the caller has checked it); set_path(program, path) sets where it looks for the latter."""
    def change(root, fields):
        program = root / "usr/bin/kivi"
        shutil.copyfile(build / "kivi", program)
        run("strip", program)
        set_path(program, CUBLAS_PATH)
        for name, place in MADE.items():
            shutil.copyfile(build / "share" / name, root / "usr" / place)
        (root / "usr/share/doc/kivi/sbom.cdx.json").write_text(bill)
        values = {"version": fields["Version"], "depends": fields["Depends"]}
        for name, value in CUDA_FIELDS.items():
            fields[name] = value.format(**values)
        fields["Description"] = "\n".join([CUDA_SUMMARY, *fields["Description"].split("\n")[1:]])

    name = package.name.replace("kivi_", "kivi-cuda_", 1)
    repack(package, output / name, change)
