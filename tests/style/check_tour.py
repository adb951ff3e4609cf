#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps docs/tour.md true: every stop quotes lines that are in the file it names.

    tests/style/check_tour.py            fails if a quoted line is not in its file, or is there twice
    tests/style/check_tour.py --update   also writes the current line numbers into the page

A line number that has moved is printed and does not fail: scripts/tour-lines refreshes it.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/tour.md"
STOPS_MIN = 15
STOP = re.compile(r"^\[([\w./-]+)\]\([\w./-]+\), line (\d+):\n\n```cpp\n(.*?)^```$",
                  re.MULTILINE | re.DOTALL)


def stripped(text):
    return [line.strip() for line in text.splitlines()]


def places_of(quote, text):
    """The line numbers (from 1) at which the lines of `quote` stand in `text`, indentation aside."""
    wanted, lines = stripped(quote), stripped(text)
    return [i + 1 for i in range(len(lines) - len(wanted) + 1)
            if lines[i:i + len(wanted)] == wanted]


def check(page, read):
    """Failures, notes and the page with current numbers. read(path): a file's text, None if absent."""
    failures, notes = [], []

    def current(match):
        path, number, quote = match.group(1), int(match.group(2)), match.group(3)
        text = read(path)
        first = quote.strip().splitlines()[0].strip() if quote.strip() else ""
        if text is None:
            failures.append(f"{path} does not exist")
        elif not first:
            failures.append(f"{path}: the quote is empty")
        else:
            places = places_of(quote, text)
            if len(places) != 1:
                failures.append(f"{path}: the quote is there {len(places)} times, must be once: "
                                f"{first}")
            elif places[0] != number:
                notes.append(f"{path}: line {number} is now line {places[0]}")
                return match.group(0).replace(f", line {number}:", f", line {places[0]}:", 1)
        return match.group(0)

    updated = STOP.sub(current, page)
    stops = len(STOP.findall(page))
    named = len(re.findall(r"^\*\*Stop \d+\.", page, re.MULTILINE))
    if stops != named or stops < STOPS_MIN:
        failures.append(f"{named} stops have {stops} quotes, must be one each and at least "
                        f"{STOPS_MIN}")
    return failures, notes, updated


def self_test():
    """The check finds what it is for."""
    def page(line, quote):
        stop = f"**Stop 1. X.**\n\n[a.h](../a.h), line {line}:\n\n```cpp\n{quote}\n```\n"
        return stop * STOPS_MIN
    read = {"a.h": "one\n  two\n  three\none\n"}.get
    assert check(page(2, "two\nthree"), read)[:2] == ([], [])
    assert check(page(9, "two"), read)[2] == page(2, "two")
    assert check(page(2, "lost"), read)[0]
    assert check(page(1, "one"), read)[0]  # twice
    assert check(page(1, "two").replace("a.h]", "b.h]"), read)[0]
    assert check("", read)[0]


def main():
    self_test()
    page = PAGE.read_text(encoding="utf-8")

    def read(path):
        file = ROOT / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    failures, notes, updated = check(page, read)
    if sys.argv[1:] == ["--update"]:
        PAGE.write_text(updated, encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit(__doc__.strip())
    for line in notes + failures:
        print(f"docs/tour.md: {line}")
    print(f"tour: {len(STOP.findall(page))} stops, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
