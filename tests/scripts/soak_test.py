#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The verdict of scripts/soak: each fault that it looks for makes it bad."""

import importlib.machinery
import importlib.util
import pathlib
import types
import unittest

PATH = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "soak"
LOADER = importlib.machinery.SourceFileLoader("soak", str(PATH))
soak = importlib.util.module_from_spec(importlib.util.spec_from_loader("soak", LOADER))
LOADER.exec_module(soak)


def samples(**grows):
    """Eleven samples of an idle server; each named figure grows by so much from one to the next."""
    steady = {"rss_mb": 50.0, "descriptors": 17, "threads": 26, "running": 0, "waiting": 0,
              "cache_share": 0, "log_lines_dropped": 0}
    return [{k: v + i * grows.get(k, 0) for k, v in steady.items()} for i in range(11)]


def faults(quiets=None, counts=None, failures=(), code=0):
    counts = counts or {"whole": {"200": 99, "503": 1}, "stream": {"200": 50}, "grpc": {"OK": 50}}
    return [check for check, _, _, passed in
            soak.judge(quiets or samples(), counts, list(failures), code) if not passed]


class Verdict(unittest.TestCase):
    def test_a_steady_server_passes(self):
        self.assertEqual(faults(), [])
        self.assertEqual(faults(quiets=samples(rss_mb=0.5)), [])

    def test_what_grows_is_found(self):
        for what, by in (("rss_mb", 3), ("descriptors", 1), ("threads", 1), ("running", 1),
                         ("waiting", 1), ("cache_share", 0.01), ("log_lines_dropped", 1)):
            with self.subTest(what):
                self.assertEqual(len(faults(quiets=samples(**{what: by}))), 1)

    def test_one_unexpected_outcome_is_enough(self):
        self.assertEqual(len(faults(failures=["bad json: unexpected outcome 500"])), 1)

    def test_a_server_that_refuses_good_requests_fails(self):
        self.assertEqual(len(faults(counts={"whole": {"200": 80, "503": 20}})), 1)
        self.assertEqual(len(faults(counts={"grpc": {"UNAVAILABLE": 20}})), 1)

    def test_an_exit_code_is_judged(self):
        self.assertEqual(len(faults(code=1)), 1)


class Outcomes(unittest.TestCase):
    def test_a_status_that_is_not_expected_is_a_failure(self):
        load = types.SimpleNamespace(counts={}, failures=[], lock=soak.threading.Lock())
        load.fail = load.failures.append
        soak.Load.note(load, "bad json", 400)
        self.assertEqual(load.failures, [])
        soak.Load.note(load, "bad json", 500)
        self.assertEqual(load.failures, ["bad json: unexpected outcome 500"])
        self.assertEqual(load.counts, {"bad json": {"400": 1, "500": 1}})


if __name__ == "__main__":
    unittest.main()
