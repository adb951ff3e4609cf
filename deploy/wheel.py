# SPDX-License-Identifier: Apache-2.0
"""The files of a Python wheel around the program: used by scripts/release.

A wheel is a zip file. Entries are sorted and have one time, so equal files give equal wheels."""

import base64
import hashlib
import io
import zipfile

MAIN = '''# SPDX-License-Identifier: Apache-2.0
"""Runs the program of this package: `kivi` and `python -m kivi` are the same."""

import os
import sys

from kivi import program


def main():
    path = program()
    os.execv(path, ["kivi", *sys.argv[1:]])


if __name__ == "__main__":
    main()
'''

INIT = '''# SPDX-License-Identifier: Apache-2.0
"""Kivi Server: serves language models from a paged, quantized key-value cache.

The package holds the program `kivi` and the libraries that a Linux host may lack."""

import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent
__version__ = "{version}"


def demo_model():
    """Returns the folder of the demo model, a tiny model of fairy tales."""
    return FOLDER / "models" / "tales-llama"


def cuda_library():
    """Returns the cuBLAS library of the package nvidia-cublas, or None if it is not installed."""
    library = FOLDER.parent / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13"
    return library if library.exists() else None


def program():
    """Returns the path of the program: the one with CUDA if it is in this package, its library is
    installed and the machine has an NVIDIA driver; else the one for the CPU."""
    with_cuda = FOLDER / "bin" / "kivi-cuda"
    if with_cuda.exists() and cuda_library() and pathlib.Path("/dev/nvidiactl").exists():
        return str(with_cuda)
    return str(FOLDER / "bin" / "kivi")
'''

DEMO = '''# SPDX-License-Identifier: Apache-2.0
"""Prints the folder of the demo model: kivi serve "$(python -m kivi.demo)"."""

from kivi import demo_model

print(demo_model())
'''


def metadata(version, readme, with_cuda):
    lines = ["Metadata-Version: 2.3", "Name: kivi-server", f"Version: {version}",
             "Summary: Server of language models with a paged, quantized key-value cache",
             "License: Apache-2.0", "Requires-Python: >=3.8",
             "Classifier: Operating System :: POSIX :: Linux",
             "Description-Content-Type: text/markdown"]
    if with_cuda:
        lines += ["Provides-Extra: cuda", 'Requires-Dist: nvidia-cublas<14,>=13; extra == "cuda"']
    return "\n".join(lines) + "\n\n" + readme


def record_line(name, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"


def wheel_bytes(files, version, tag, readme, time, with_cuda):
    """Returns a wheel. `files` maps paths below the package to (bytes, executable). `tag` is the
    platform's. `time` is what all entries carry, as (year, month, day, hour, minute, second)."""
    info = f"kivi_server-{version}.dist-info"
    entries = {f"kivi/{name}": value for name, value in files.items()}
    entries["kivi/__init__.py"] = (INIT.format(version=version).encode(), False)
    entries["kivi/__main__.py"] = (MAIN.encode(), False)
    entries["kivi/demo.py"] = (DEMO.encode(), False)
    entries[f"{info}/METADATA"] = (metadata(version, readme, with_cuda).encode(), False)
    entries[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: kivi\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n".encode(),
        False)
    entries[f"{info}/entry_points.txt"] = (
        b"[console_scripts]\nkivi = kivi.__main__:main\n", False)
    record = [record_line(name, data) for name, (data, _) in sorted(entries.items())]
    record.append(f"{info}/RECORD,,")
    entries[f"{info}/RECORD"] = ("\n".join(record).encode() + b"\n", False)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, (data, executable) in sorted(entries.items()):
            entry = zipfile.ZipInfo(name, time)
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return out.getvalue()
