#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Fails if two sources of one target define the same name in their unnamed namespaces: in a unity build
(KIVI_UNITY) they can be parts of one source, which then does not compile. Functions of different
parameters and equal aliases may share a name.

    tests/style/check_unnamed.py
"""

import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The sources of each target that a unity build puts together.
TARGETS = (
    ("base/*.cpp", "base/report/*.cpp"),
    ("kernels/*.cpp",),
    ("engine/jinja/*.cpp",),
    ("engine/grammar/*.cpp",),
    ("engine/*.cpp", "engine/model/**/*.cpp", "engine/text/*.cpp", "engine/serving/*.cpp"),
    ("server/*.cpp",),
    ("server/http/*.cpp", "server/openai/*.cpp"),
    ("server/grpc/*.cpp",),
    ("bench/*.cpp",),
    ("bench/client/*.cpp",),
    ("study/*.cpp",),
    ("tools/*.cpp",),
    *[("tests/%s/*_test.cpp" % folder,) for folder in (
        "base", "bench", "engine", "events", "golden", "grammar", "grpc", "http", "kernels", "load",
        "model", "serving", "study", "text", "tools")],
)
# Sources with options of their own are compiled alone.
ALONE = ("tests/engine/engine_simulation_test.cpp", "tests/engine/scheduler_simulation_test.cpp")
PLACES = re.compile(r"^namespace \{$(.*?)^\}  // namespace$", re.MULTILINE | re.DOTALL)
# What begins a definition stands in the first column; clang-format sees to it.
BEGIN = re.compile(r"^(?=[A-Za-z\[])(?!namespace \{|template|public:|private:|extern )", re.MULTILINE)


def pieces(text):
    """Splits at the commas that stand in no bracket."""
    depth, piece = 0, ""
    for c in text:
        depth += (c in "<([{") - (c in ">)]}")
        if c == "," and depth == 0:
            yield piece
            piece = ""
        else:
            piece += c
    if piece.strip():
        yield piece


def parameter_type(parameter):
    parameter = " ".join(parameter.split("=")[0].split())
    return re.sub(r"(?<=[\s&*>])\w+$", "", parameter).strip() if " " in parameter else parameter


def definition(text):
    """(name, what it is) of the definition that `text` begins with, or None."""
    text = re.sub(r"//.*", "", text)
    if match := re.match(r"(?:using|namespace) (\w+) = ([^;]+);", text):
        return match[1], " ".join(match[2].split())
    if text.startswith("using "):
        return None
    if match := re.match(r"(?:struct|class|enum class|enum) (\w+)\s*([;{:]|final)", text):
        return None if match[2] == ";" else (match[1], "type")
    head = re.match(r"[^={;]*", text)[0]
    if match := re.match(r"[^(]*?((?:~|::)?\w+)\(", head):
        if match[1][0] in "~:":
            return None  # a member of a class
        depth, end = 0, match.end()
        for end in range(match.end() - 1, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                break
        return match[1], "(%s)" % ", ".join(parameter_type(p) for p in pieces(text[match.end():end]))
    match = re.search(r"(\w+)(?:\[\w*\])*\s*$", head)
    return (match[1], "value") if match else None


def definitions(text):
    text = re.sub(r'R"(\w*)\(.*?\)\1"', '""', text, flags=re.DOTALL)
    for place in PLACES.finditer(text):
        for begin in BEGIN.finditer(place[1]):
            if found := definition(place[1][begin.start():]):
                yield found


def collisions(texts):
    """texts: {path: text} of one target. Yields (path, other path, name)."""
    seen = collections.defaultdict(dict)  # name -> what it is -> the first path
    for path, text in texts.items():
        for name, what in dict.fromkeys(definitions(text)):
            for other_what, other in seen[name].items():
                alias = what == other_what and what not in ("type", "value") and what[0] != "("
                overload = what != other_what and what[0] == "(" == other_what[0]
                if other != path and not alias and not overload:
                    yield path, other, name
            seen[name].setdefault(what, path)


def self_test():
    def found(a, b):
        wrap = "namespace {\n\n%s\n\n}  // namespace\n"
        return [name for _, _, name in collisions({"a": wrap % a, "b": wrap % b})]

    assert found("int f(int a, const T& b = {}) {\n  return a;\n}", "int f(int c, const T& d) { return 1; }")
    assert not found("int f(int a) { return a; }", "int f(T a) { return 1; }")
    assert found("struct A {\n};", "using A = int;") and found("struct A {\n};", "struct A : B {\n};")
    assert not found("using A = int;", "using A = int;") and not found("using a::b;", "using a::b;")
    assert found("using A = int;", "using A = long;")
    assert found("constexpr int kA = f(1);", "const T kA[] = {\n1};")
    assert found("template <class T>\nvoid f(T a) {}", "void f(T b) {}")
    assert not found("int f(int a) { return a; }", "int g(int a) { return a; }")
    assert not found("int A::f(int a) { return a; }", "int B::f(int a) { return a; }")
    assert not found('const char* k = R"(\nf{a}\n)";', "int f(int a) { return a; }")


def main():
    self_test()
    failures, count = [], 0
    for patterns in TARGETS:
        paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))
                 if str(path.relative_to(ROOT)) not in ALONE]
        assert paths, f"no sources: {patterns}"
        count += len(paths)
        texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in paths}
        failures += ["%s: `%s` has the name of another one in the unnamed namespace of %s" % (path, name, other)
                     for path, other, name in collisions(texts)]
    for failure in failures:
        print(failure)
    print(f"unnamed namespaces: {count} sources, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
