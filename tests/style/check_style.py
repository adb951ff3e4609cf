#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The walls of the house. Fails on an #include that a layer must not have, on a header that does not
compile alone, on paths that lead out of the repository, on links between its pages that lead nowhere, on
a page, path or section that a comment or a page names and that does not exist, on a drawing that is not
current, on an error that docs/api.md does not list, on a source whose first line does not name its license,
and on two types of one name. Long files are warned of.

    tests/style/check_style.py [--compiler g++]        all checks (python3 only, no other packages)
"""

import argparse
import os
import pathlib
import posixpath
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
LICENSE = "SPDX-License-Identifier: Apache-2.0"
SOURCES = (".h", ".cpp", ".cu", ".cuh")

# The rooms and what each may include, from the lowest to the highest. This table is the order: a file
# belongs to the longest room that is a prefix of its path, and it may include its own room and the rooms
# and headers listed here. Outside libraries are judged by OUTSIDE below.
KERNEL_CONTRACT = [f"kernels/{name}.h" for name in (
    "backend", "buffer", "hadamard", "half", "kv_codec", "kv_page", "kv_parameters", "kv_place", "philox",
    "sampling", "step_view", "tensor", "weight", "weight_codec")]
# What a room above the engine may know of it.
ENGINE_FACE = ["engine/config.h", "engine/engine.h", "engine/limits.h", "engine/prefix_events.h",
               "engine/request.h",
               "engine/token_stream.h", "engine/text/tokenizer.h", "engine/serving/chat_prompt.h",
               "engine/serving/completion.h", "engine/serving/kv_layer_table.h",
               "engine/serving/load.h",
               "engine/serving/structured_output.h", "kernels/sampling.h"]
ANY = ["base", "kernels", "engine", "server", "bench", "study", "proto", "tools", "tests"]
ROOMS = {
    "base": [],
    "kernels": ["base"],
    "kernels/cpu": ["base", "kernels"],
    "kernels/cuda": ["base", "kernels"],
    "engine/grammar": ["base"],
    "engine/jinja": ["base"],
    "engine/text": ["base", "engine/model/files/gguf.h"],
    "engine/model": ["base", *KERNEL_CONTRACT, "engine/batch_plan.h", "engine/config.h",
                     "engine/limits.h", "engine/request.h", "engine/sequence.h",
                     "engine/step_runner.h", "engine/token_constraint.h"],
    "engine": ["base", *KERNEL_CONTRACT],
    "engine/serving": ["base", *KERNEL_CONTRACT, "engine", "engine/grammar", "engine/jinja",
                       "engine/model", "engine/text"],
    "server": ["base", *ENGINE_FACE],
    "server/openai": ["base", *ENGINE_FACE, "server"],
    "server/http": ["base", *ENGINE_FACE, "engine/serving/completion_prompts.h", "server", "server/openai"],
    "server/grpc": ["base", *ENGINE_FACE, "server", "proto"],
    "proto": [],
    "tools": ["base", *ENGINE_FACE, "server", "bench", "study"],
    # Programs beside the product: they may include anything, and only tools/ includes them.
    "bench": ANY,
    "study": ANY,
    "tests": ANY,
}
# Single headers that join two rooms: the assembly of the front ends, and the one backend chooser.
JOINTS = {
    "kernels/backend.cpp": ["kernels/cpu", "kernels/cuda"],
    "server/serve.cpp": ["server/http", "server/grpc"],
}
RPC = re.compile(r"^(grpc|grpcpp|google/protobuf|absl|boost)/|\.pb\.h$")
CUDA = re.compile(r"^(cuda|cublas|nccl|cooperative_groups|mma\.h|nvtx)")
TEXT = re.compile(r"^(nlohmann|sentencepiece|pcre2)")
# Outside libraries that a room must not see, with the reason.
OUTSIDE = [
    (("base", "kernels", "engine"), RPC, "base/, kernels/ and engine/ know neither HTTP nor gRPC"),
    (("kernels",), TEXT, "kernels/ knows no text"),
    (("base", "kernels", "engine", "server", "tools"), CUDA, "CUDA is known in kernels/cuda only"),
]


def room_of(path):
    """The longest room of the table that holds `path`; None where there is none."""
    fitting = [room for room in ROOMS if path.startswith(room + "/")]
    return max(fitting, key=len) if fitting else None


def breach(path, include):
    """Why `path` must not include `include`; None where it may."""
    room = room_of(path)
    if room is None:
        return "this folder has no row in the table of rooms"
    top = path.split("/")[0]
    for rooms, library, why in OUTSIDE:
        if top in rooms and library.search(include) and not (
                library is CUDA and room == "kernels/cuda"):
            return why
    other = room_of(include) if (ROOT / include).exists() else None
    if other is None or other == room or ROOMS[room] is ANY:
        return None
    allowed = ROOMS[room] + JOINTS.get(path, [])
    if include in allowed or other in allowed:
        return None
    if other.startswith(("bench", "study")) and "bench" in allowed:
        return None
    return f"{room}/ may include of {other}/ only what the table of rooms lists"


def own_files():
    for top in ("base", "kernels", "engine", "server", "bench", "study", "tools", "tests", "proto"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and path.suffix in SOURCES:
                yield path.relative_to(ROOT).as_posix()


def check_licenses(files):
    """Every source of ours names its license in its first line."""
    return [f"{path}:1: expected '// {LICENSE}'" for path in files
            if not (ROOT / path).read_text(encoding="utf-8").startswith(f"// {LICENSE}\n")]


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


NAMESPACE = re.compile(r"^(?:inline )?namespace ?([\w:]*) ?\{")
TYPE = re.compile(r"^(?:template <.*> )?(?:class|struct|union|enum(?: class| struct)?) (?:\[\[\w+\]\] )?"
                  r"(?:alignas\([^)]*\) )?(\w+)(?: final)?(?: :.*| ?\{.*)?$")


def types_of(text):
    """(name with its namespaces, line) of the types that `text` defines for other sources to see: those
    at the top of a namespace, none of an unnamed one. clang-format writes both at the first column."""
    spaces, found = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("}  // namespace"):
            spaces.pop()
            continue
        line = re.sub(r"\s*//.*", "", line)
        if match := NAMESPACE.match(line):
            spaces.append(match.group(1))
        elif (match := TYPE.match(line)) and spaces and all(spaces):
            found.append(("::".join([*spaces, match.group(1)]), number))
    return found


def check_types(files):
    """No two files define types of one name. The linker would keep the functions of one of them, without
    a word, and run them on objects of the other."""
    first, failures = {}, []
    for path in files:
        for name, line in types_of((ROOT / path).read_text(encoding="utf-8")):
            if name in first:
                failures.append(f"{path}:{line}: {name} is the name of a type of {first[name]} too")
            first.setdefault(name, path)
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


def not_checked(why):
    """Says that a check had nothing to check: the failures that this is, one in CI and none elsewhere."""
    print(f"not checked: {why}")
    return [f"CI=true, so this check must run: {why}"] if os.environ.get("CI") == "true" else []


def check_paths():
    """Nothing in the repository may depend on, or speak of, files outside of it."""
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if tracked.returncode != 0:
        return not_checked(f"paths and links: git ls-files failed: {tracked.stderr.strip()}")
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

    if tracked.returncode != 0:
        return []  # check_paths() has said so

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


# A path that begins with one of our folders, as a comment or a page names it.
FOLDERS = ("base|bench|cmake|configs|deploy|docker|docs|engine|kernels|models|proto|scripts|server|study|tests|tools")
NAMED_PATH = re.compile(rf"(?<![\w./<$-])(?:{FOLDERS})/[\w./*-]*[\w*]")
# "docs/a.md, section 2", "a.md, sections 1, 2 and 4", 'docs/a.md, section "Errors"'.
NAMED_PAGE = re.compile(r"(?<![\w./-])[\w./-]+\.md\b")
NAMED_SECTIONS = re.compile(
    r'(?<![\w./-])([\w./-]+\.md)[`)]?, sections? ((?:\d+(?:, | and |, and )?)+|"[^"]+")')
SUFFIXES = ("", ".h", ".cpp", ".cuh", ".cu", ".py", ".proto", ".md")


DOCSTRING = re.compile(r'^[ \t]*"""(.*?)"""', re.MULTILINE | re.DOTALL)


def comments_of(name, text):
    """What a file says in prose: all of a page, the comments of a source, joined over line ends, and
    the docstrings of Python."""
    if name.endswith(".md"):
        def target(match):  # a link stands for the page that it leads to
            path = match.group(1).split("#")[0]
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            return path if path.endswith(".md") and ":" not in path else ""
        return re.sub(r"(?<!\n)\n(?![\n|#])", " ", re.sub(r"\[[^\]]*\]\(([^()\s]*)\)", target, text))
    mark = "//" if name.endswith(SOURCES + (".proto",)) else "#"
    found = []
    for line in text.splitlines():
        code, at, comment = line.partition(mark)
        if not at or code.rstrip().endswith((":", '"', "'")) or "#include" in line:
            found.append("\n")
            continue
        found.append((" " if not code.strip() else "\n") + comment.strip())
    if name.endswith(".py") or "python3" in text.split("\n", 1)[0]:
        found += ["\n" + docstring for docstring in DOCSTRING.findall(text)]
    return "".join(found)


def missing_names(name, text, exists, sections_of):
    """The pages, paths and sections that `text` of the file `name` names and that are not there.
    exists(path): is there such a file or folder? sections_of(page): its headings, None if no page."""
    failures = []
    prose = re.sub(r"\w+://\S+", "", comments_of(name, text))

    def page_path(page):
        folder = posixpath.dirname(name)
        for candidate in (page, posixpath.join(folder, page), posixpath.join("docs", page)):
            if sections_of(posixpath.normpath(candidate)) is not None:
                return posixpath.normpath(candidate)
        return None

    for match in NAMED_PATH.finditer(prose):
        path = match.group(0)
        if path.endswith(".md") or re.search(r"/[A-Z]+(\.|/|$)", path):  # FILE.json: a stand-in
            continue
        if not exists(path):
            failures.append(f"{name}: names {path}, which does not exist")
    for match in NAMED_PAGE.finditer(prose):
        if page_path(match.group(0)) is None and not re.match(r"[A-Z]+/", match.group(0)):
            failures.append(f"{name}: names {match.group(0)}, which does not exist")
    for page, sections in NAMED_SECTIONS.findall(prose):
        path = page_path(page)
        if path is None:
            continue
        headings = sections_of(path)
        wanted = [sections.strip('"')] if sections.startswith('"') else re.findall(r"\d+", sections)
        for section in wanted:
            if not any(h == section or h.startswith(section + ". ") for h in headings):
                failures.append(f"{name}: names {path}, section {section}, which does not exist")
    return failures


# "keys_test `Sources`": a class of tests/attack/keys_test.py, as the pages on security name it.
NAMED_TEST = re.compile(r"\b(\w+_test) `([A-Z]\w*)`")


def missing_tests(name, text, read):
    """The classes of attack tests that the page `text` names and that are not there. read(path): the
    text of a file, None if there is none."""
    failures = []
    for module, test in NAMED_TEST.findall(text):
        path = f"tests/attack/{module}.py"
        if not re.search(rf"^class {test}\(", read(path) or "", re.MULTILINE):
            failures.append(f"{name}: names {module} `{test}`, but {path} has no such class")
    return failures


def check_tests():
    def read(path):
        return (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else None
    return [failure for page in sorted((ROOT / "docs").glob("security*.md")) for failure in missing_tests(
        page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"), read)]


ERROR_KIND = re.compile(r'\bk\w+\{"(\w+)", "\w+", (\d+)')


def unlisted_codes(source, page):
    """The errors of the table in `source` that no row of the page "| status | code, code | ..." has."""
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", page, re.MULTILINE)
    return [f"{status} {code}" for code, status in ERROR_KIND.findall(source)
            if not any(row == status and code in re.findall(r"\w+", codes) for row, codes in rows)]


def check_errors():
    """docs/api.md has every error of the table of errors, with its status."""
    source = (ROOT / "server/api_error.h").read_text(encoding="utf-8")
    assert len(ERROR_KIND.findall(source)) > 20, "server/api_error.h has no table of errors any more"
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    return [f"docs/api.md: no row of section Errors has {error}" for error in unlisted_codes(source, page)]


def check_names():
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
                             capture_output=True, text=True).stdout.splitlines()
    present = {name for name in tracked if (ROOT / name).exists()}
    folders = {str(parent) for name in present for parent in pathlib.PurePosixPath(name).parents}

    def exists(path):
        path = path.rstrip("/.")
        if "*" in path:
            pattern = re.compile(re.escape(path).replace(r"\*", "[^/]*"))
            return any(pattern.match(name) for name in present)
        return path in folders or any(path + suffix in present for suffix in SUFFIXES)

    headings = {name: [line.lstrip("#").strip() for line in
                       (ROOT / name).read_text(encoding="utf-8").splitlines()
                       if line.startswith("#")] for name in present if name.endswith(".md")}
    failures = []
    for name in sorted(present):
        suffix = pathlib.PurePosixPath(name).suffix
        if name.startswith(("tests/data/", "models/", "tests/style/check_style")) or not (
                suffix in SOURCES + (".md", ".proto", ".cmake", ".py", ".sh", ".yml")
                or name.startswith(("scripts/", ".ci/")) or name.endswith("CMakeLists.txt")):
            continue
        failures += missing_names(name, (ROOT / name).read_text(encoding="utf-8"), exists,
                                  headings.get)
    return failures


def loose_bases(name, text):
    """Bases of a Dockerfile that a registry may replace: neither scratch, nor an argument, nor pinned."""
    failures = []
    for match in re.finditer(r"^(?:FROM|ARG \w*BASE=) *(\S+)", text, re.MULTILINE):
        base = match.group(1)
        if base != "scratch" and not base.startswith("${") and not re.search(r"@sha256:[0-9a-f]{64}$", base):
            failures.append(f"{name}: {base} is not pinned by a digest")
    return failures


def check_bases():
    """Both Dockerfiles name their bases by digest."""
    return [failure for name in ("docker/Dockerfile", ".devcontainer/Dockerfile")
            for failure in loose_bases(name, (ROOT / name).read_text(encoding="utf-8"))]


def check_drawings():
    """The pictures of docs/design are what their script draws."""
    run = subprocess.run([str(ROOT / "scripts/draw-design"), "--check"], capture_output=True, text=True)
    if run.returncode == 0:
        return []
    return run.stdout.splitlines() or [f"scripts/draw-design --check failed: {run.stderr.strip()[-800:]}"]


def check_lengths(files):
    for path in files:
        lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
        if lines > 500:
            print(f"warning: {path} has {lines} lines; ask whether a second idea wants its own file")


def self_test():
    """The checks see what they are for."""
    assert breach("base/a.cpp", "kernels/tensor.h")
    assert breach("server/a.cpp", "kernels/backend.h")
    assert breach("tools/a.cpp", "engine/scheduler.h")
    assert breach("engine/a.cpp", "kernels/cpu/cpu_backend.h")
    assert breach("engine/a.h", "grpcpp/grpcpp.h")
    assert breach("engine/a.cpp", "engine/serving/load.h")
    assert breach("engine/jinja/a.cpp", "engine/engine.h")
    assert breach("kernels/cpu/a.cpp", "engine/request.h")
    assert breach("kernels/a.cpp", "cuda_runtime.h")
    assert breach("server/a.cpp", "bench/benchmark_data.h")
    assert breach("lost/a.cpp", "base/result.h")
    assert not breach("server/a.cpp", "engine/serving/completion.h")
    assert not breach("server/a.cpp", "base/result.h")
    assert not breach("engine/a.cpp", "kernels/backend.h")
    assert not breach("kernels/cuda/a.cu", "cuda_runtime.h")
    assert not breach("tools/a.cpp", "bench/client/report.h")
    assert not breach("study/a.cpp", "kernels/backend.h")
    assert types_of("namespace a::b {\nclass X final : Y {\nstruct Z;\nnamespace {\nstruct W {\n") == [
        ("a::b::X", 2)]
    assert types_of("namespace {\n}  // namespace\nnamespace a {\nenum class E { x };\ntemplate <int N> struct T {"
                    ) == [("a::E", 4), ("a::T", 5)]
    pages = {"docs/a.md": ["one-two"], "b.md": []}.get
    assert not broken_links("docs/a.md", "[x](../b.md) [y](a.md#one-two) [z](https://h/i)", pages)
    assert broken_links("docs/a.md", "[x](b.md)", pages)
    assert broken_links("b.md", "[x](docs/a.md#three)", pages)
    sections = {"docs/a.md": ["A", "1. One", "Errors"]}.get
    there = {"kernels/a.h", "docs"}.__contains__

    def missing(text, name="server/a.h"):
        return missing_names(name, text, there, sections)
    assert not missing('// See kernels/a.h and docs/a.md, section 1, or\n// a.md, section "Errors".')
    assert not missing("auto x = path(docs/lost.md);  // nothing named here")
    assert missing("// See kernels/lost.h.")
    assert missing("// See lost.md.")
    assert missing("// See docs/a.md, sections 1\n// and 2.")
    assert missing("Text names `docs/b.md`.", "b.md")
    assert missing('See a.md, section "Lost".', "docs/b.md")
    attacks = {"tests/attack/a_test.py": "class One(X):\n    pass\n"}.get
    assert not missing_tests("docs/security.md", "| x | a_test `One` |", attacks)
    assert missing_tests("docs/security.md", "| x | a_test `Two` |", attacks)
    assert missing_tests("docs/security.md", "| x | b_test `One` |", attacks)
    table = 'kFull{"full", "busy_error", 503, x}, kOdd{"odd", "odd_error", 400, x}'
    assert unlisted_codes(table, "| 503 | full, over | x |\n| 400 | odd_one | x |\n| 500 | odd | x |") == ["400 odd"]
    pinned = "debian:bookworm@sha256:" + "0" * 64
    assert not loose_bases("Dockerfile", f"ARG RUN_BASE={pinned}\nFROM ${{RUN_BASE}} AS root\nFROM scratch\n")
    assert loose_bases("Dockerfile", "ARG RUN_BASE=debian:bookworm\n") and loose_bases("Dockerfile", "FROM debian\n")
    assert missing('def f():\n    """As kernels/lost.h\n    does."""\n', "tests/a.py")
    assert missing('"""Run:\n\n    kernels/lost.py [-k NAME]\n"""\n', "tests/a.py")
    assert not missing('TEXT = """names kernels/lost.h"""\n', "tests/a.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="g++")
    arguments = parser.parse_args()
    self_test()
    files = list(own_files())
    assert files, f"no sources under {ROOT}"
    failures = check_licenses(files) + check_layers(files) + check_types(files) + check_paths()
    failures += check_links() + check_names() + check_tests() + check_drawings() + check_errors()
    failures += check_bases()
    failures += check_headers_compile(files, arguments.compiler)
    check_lengths(files)
    for failure in failures:
        print(failure)
    print(f"style: {len(files)} files, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
