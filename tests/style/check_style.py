#!/usr/bin/python3
"""The walls of the house: fails on an #include that a layer must not have, on a header that does not
compile alone, on paths that lead out of the repository and on links between its pages that lead nowhere.
Long files are warned of.

    tests/style/check_style.py [--compiler g++]        all checks (python3 only, no other packages)
"""

import argparse
import pathlib
import posixpath
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
SOURCES = (".h", ".cpp", ".cu", ".cuh")

# Who may include what (README.md, The layout).
ENGINE_PUBLIC = {
    f"engine/{name}.h"
    for name in ("chat_prompt", "engine", "completion", "config", "kernel_benchmark", "kv_statistics",
                 "kv_study", "request", "limits", "load", "metrics", "tokenizer", "token_stream")
}
KERNELS_RESULT = {"kernels/result.h", "kernels/verify.h", "kernels/sampling.h"}
KERNEL_CONTRACTS = {
    f"kernels/{name}.h"
    for name in ("backend", "buffer", "half", "kv_codec", "kv_page", "result", "sampling",
                 "step_view", "tensor", "verify")
}
RPC = re.compile(r"^(grpc|grpcpp|google/protobuf|absl|boost)/|\.pb\.h$")
CUDA = re.compile(r"^(cuda|cublas|nccl|cooperative_groups|mma\.h|nvtx)")
TEXT = re.compile(r"^(nlohmann|sentencepiece|pcre2)")


def breach(path, include):
    """Why `path` must not include `include`; None where it may."""
    top = path.split("/")[0]
    if top in ("server", "tools"):
        if include.startswith("kernels/") and include not in KERNELS_RESULT:
            return "server/ and tools/ know of kernels/ only result, verify and sampling"
        if include.startswith("engine/") and include not in ENGINE_PUBLIC:
            return "server/ and tools/ know the engine by its public headers"
        if CUDA.search(include):
            return "CUDA is known below kernels/cuda only"
    elif top == "engine":
        if include.startswith(("server/", "tools/", "proto/")):
            return "engine/ does not know who calls it"
        if include.startswith("kernels/") and include not in KERNEL_CONTRACTS:
            return "engine/ knows kernels/ by its contract headers"
        if RPC.search(include) or CUDA.search(include):
            return "engine/ knows neither HTTP nor gRPC nor CUDA"
    elif top == "kernels":
        if include.startswith(("engine/", "server/", "tools/", "proto/")):
            return "kernels/ knows only itself"
        if RPC.search(include) or TEXT.search(include):
            return "kernels/ knows neither sockets nor text"
        if CUDA.search(include) and not path.startswith("kernels/cuda/"):
            return "CUDA is known below kernels/cuda only"
        if path.startswith("kernels/cpu/") and include.startswith("kernels/cuda/"):
            return "the CPU backend does not know the CUDA backend"
        if path.startswith("kernels/cuda/") and include.startswith("kernels/cpu/"):
            return "the CUDA backend does not know the CPU backend"
    return None


def own_files():
    for top in ("kernels", "engine", "server", "tools", "tests", "proto"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and path.suffix in SOURCES:
                yield path.relative_to(ROOT).as_posix()


def check_layers(files):
    failures = []
    for path in files:
        text = (ROOT / path).read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            why = breach(path, match.group(1))
            if why:
                line = text.count("\n", 0, match.start()) + 1
                failures.append(f"{path}:{line}: includes {match.group(1)}: {why}")
    return failures


def check_headers_compile(files, compiler):
    """Each light header by itself. The build has compiled alone what its own source includes first;
    headers that pull in Boost, gRPC or generated code would take minutes."""
    headers = [p for p in files if p.endswith(".h") and not p.startswith("tests/")
               and not p.startswith("kernels/cuda/") and not first_of_its_source(p) and light(p)]

    def compile_one(path):
        run = subprocess.run(
            [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wno-pragma-once-outside-header",
             f"-I{ROOT}", "-x", "c++", str(ROOT / path)], capture_output=True, text=True)
        return None if run.returncode == 0 else f"{path}: does not compile alone:\n{run.stderr[:800]}"

    with ThreadPoolExecutor(max_workers=2) as pool:
        return [failure for failure in pool.map(compile_one, headers) if failure]


def first_of_its_source(path):
    source = ROOT / path.replace(".h", ".cpp")
    if not source.is_file():
        return False
    first = INCLUDE.search(source.read_text(encoding="utf-8"))
    return first is not None and first.group(1) == path


def light(path, seen=None):
    """Does `path` include, itself or by ours, no heavy library?"""
    seen = seen if seen is not None else set()
    if path in seen:
        return True
    seen.add(path)
    for include in INCLUDE.findall((ROOT / path).read_text(encoding="utf-8")):
        if RPC.search(include) or include.startswith(("prometheus/", "hwy/")):
            return False
        if (ROOT / include).is_file() and not light(include, seen):
            return False
    return True


def check_paths():
    """Nothing in the repository may depend on, or speak of, files outside of it."""
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if tracked.returncode != 0:
        return []
    # In Markdown and scripts, where no #include or sibling module needs one.
    outside = re.compile(r"(?<![\w./])\.\./(?!\.)\w[\w.-]*|(?<![\w.$}/])/(?:home|root|work)/")
    failures = []
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix not in (".md", ".json", ".sh", ".yml", ".txt") and not name.startswith(
                ("scripts/", ".ci/")):
            continue
        if path.stat().st_size > 1 << 20 or name.endswith("tokenizer.json"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in outside.finditer(line):
                target = (path.parent / match.group(0).rstrip(".")).resolve()
                if not match.group(0).startswith("..") or not target.exists() or (
                        ROOT not in target.parents):
                    failures.append(f"{name}:{number}: path out of the repository: {match.group(0)}")
    return failures


def anchor(heading):
    """The id that a heading of Markdown gets: GitHub's rule."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def broken_links(name, text, headings_of):
    """The relative links of the Markdown `text` that lead nowhere. `headings_of(path)`: the anchors of
    a file of the repository, by its path from the root; None where there is no such file."""
    prose = re.sub(r"^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    failures = []
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
        headings = headings_of(path)
        if headings is None:
            failures.append(f"{name}: link to {target}: there is no {path}")
        elif fragment and fragment not in headings:
            failures.append(f"{name}: link to {target}: {path} has no such heading")
    return failures


def check_links():
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "*.md"],
                             capture_output=True, text=True)

    def headings_of(path):
        file = ROOT / path
        if not file.exists():
            return None
        if file.suffix != ".md":
            return []
        return [anchor(line.lstrip("#"))
                for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]

    return [failure for name in tracked.stdout.splitlines() for failure in broken_links(
        name, (ROOT / name).read_text(encoding="utf-8"), headings_of)]


def check_lengths(files):
    for path in files:
        lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
        if lines > 500:
            print(f"warning: {path} has {lines} lines; ask whether a second idea wants its own file")


def self_test():
    """The checks see what they are for."""
    assert breach("server/a.cpp", "kernels/backend.h")
    assert breach("tools/a.cpp", "engine/scheduler.h")
    assert breach("engine/a.cpp", "kernels/cpu/cpu_backend.h")
    assert breach("engine/a.h", "grpcpp/grpcpp.h")
    assert breach("kernels/cpu/a.cpp", "engine/request.h")
    assert breach("kernels/a.cpp", "cuda_runtime.h")
    assert not breach("server/a.cpp", "engine/completion.h")
    assert not breach("server/a.cpp", "kernels/result.h")
    assert not breach("engine/a.cpp", "kernels/backend.h")
    assert not breach("kernels/cuda/a.cu", "cuda_runtime.h")
    pages = {"docs/a.md": ["one-two"], "b.md": []}.get
    assert not broken_links("docs/a.md", "[x](../b.md) [y](a.md#one-two) [z](https://h/i)", pages)
    assert broken_links("docs/a.md", "[x](b.md)", pages)
    assert broken_links("b.md", "[x](docs/a.md#three)", pages)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="g++")
    arguments = parser.parse_args()
    self_test()
    files = list(own_files())
    failures = check_layers(files) + check_paths() + check_links()
    failures += check_headers_compile(files, arguments.compiler)
    check_lengths(files)
    for failure in failures:
        print(failure)
    print(f"style: {len(files)} files, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
