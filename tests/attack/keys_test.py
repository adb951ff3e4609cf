#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""API keys: a source of keys that has none, odd key files, an open server, and a reload.

    BINARY_UNDER_TEST=build/kivi tests/attack/keys_test.py [-k NAME]
"""

import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from harness import KIVI, MODEL, ROOT, Server, environment  # noqa: E402
from ports import free_port  # noqa: E402

SECRET = "a-secret-of-the-test"


def start(*arguments, **variables):
    """A start that should be refused: (exit code, stderr). None as a code: the server served."""
    process = subprocess.Popen(
        [KIVI, "serve", MODEL, "--port", str(free_port()), "--grpc-port", str(free_port()),
         *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=environment(**variables))
    try:
        return process.wait(timeout=15), process.stderr.read()
    except subprocess.TimeoutExpired:
        process.kill()
        return None, process.communicate()[1]
    finally:
        process.stderr.close()


class WithFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, data, name="keys"):
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


class Sources(WithFolder):
    """What names a source of keys and gives none must not open the server."""

    def refused(self, named, *arguments, **variables):
        code, error = start(*arguments, **variables)
        self.assertEqual(code, 2, error)
        self.assertIn(named, error)
        self.assertNotIn(SECRET, error)
        return error

    def test_a_file_without_a_key_is_refused_by_its_name(self):
        for data in (b"", b"\n\n\n", b" \r\n\t\r\n", b"\xef\xbb\xbf\r\n"):
            with self.subTest(data=data):
                path = self.file(data)
                self.refused(f"--api-key-file {path} has no API key", "--api-key-file", path)

    def test_such_a_file_is_refused_beside_a_good_key(self):
        path = self.file(b"\n")
        self.refused(path, "--api-key-file", path, "--api-key", SECRET)

    def test_a_variable_without_a_key_is_refused_by_its_name(self):
        for value in (",", ",,", " ", " , "):
            with self.subTest(value=value):
                self.refused("KIVI_API_KEY", KIVI_API_KEY=value)

    def test_a_flag_without_a_key_is_refused_by_its_name(self):
        for value in ("", "  "):
            with self.subTest(value=value):
                self.refused("--api-key", "--api-key", value)

    def test_a_config_file_with_an_empty_key_is_refused_by_its_name(self):
        path = self.file(b'{"api_key": [""]}', "config.json")
        self.refused(path, "--config", path)

    def test_a_key_with_white_space_or_control_characters_is_refused_by_its_line(self):
        for inner in (b" ", b"\t", b"\x00", b"\x1b", b"\x7f"):
            with self.subTest(inner=inner):
                path = self.file(b"good\n\n" + SECRET.encode() + inner + b"x\n")
                self.refused(f"{path}, line 3", "--api-key-file", path)

    def test_a_mark_carriage_returns_and_blanks_are_no_part_of_a_key(self):
        path = self.file(b"\xef\xbb\xbf first \r\n\r\n\tsecond\t\r\nthird")
        server = Server("--api-key-file", path, KIVI_API_KEY=" fourth ")
        self.addCleanup(server.close)
        for key in ("first", "second", "third", "fourth"):
            with self.subTest(key=key):
                reply = server.get("/v1/models", "-H", f"Authorization: Bearer {key}")
                self.assertEqual(reply.status, 200)
        self.assertEqual(server.get("/v1/models").status, 401)
        self.assertEqual(server.get("/v1/models", "-H", "Authorization: Bearer fifth").status, 401)


class Open(unittest.TestCase):
    def test_a_server_without_keys_says_so_on_loopback(self):
        server = Server()
        self.addCleanup(server.close)
        self.assertRegex(server.log_text(), r" W there is no API key: every program")

    def test_a_server_without_keys_is_refused_on_an_address_that_others_reach(self):
        for host in ("0.0.0.0", "::"):
            with self.subTest(host=host):
                code, error = start("--host", host)
                self.assertEqual(code, 2, error)
                self.assertIn(f"--host is {host}", error)
                self.assertIn("--api-key-file", error)
                self.assertIn("--allow-open", error)

    def test_allow_open_serves_there_with_a_loud_line(self):
        server = Server("--host", "0.0.0.0", "--allow-open")
        self.addCleanup(server.close)
        self.assertRegex(server.log_text(), r" E NO API KEY, AND 0\.0\.0\.0 IS REACHED")
        self.assertEqual(server.get("/v1/models").status, 200)

    def test_a_key_is_enough_to_serve_there(self):
        server = Server("--host", "0.0.0.0", KIVI_API_KEY=SECRET)
        self.addCleanup(server.close)
        self.assertNotIn("NO API KEY", server.log_text())
        self.assertEqual(server.get("/v1/models").status, 401)


class Reload(WithFolder):
    def status(self, server, key):
        return server.get("/v1/models", "-H", f"Authorization: Bearer {key}").status

    def grpc_ends_well(self, server, key):
        run = subprocess.run(
            ["/usr/bin/python3", str(ROOT / "tests" / "e2e" / "grpc_client.py"), "--address",
             f"127.0.0.1:{server.grpc_port}", "--key", key, "generate", "--max-tokens", "2"],
            capture_output=True, timeout=60)
        return run.returncode == 0

    def reload(self, server, line):
        """Sends SIGHUP and waits until the log has one more line of this kind."""
        known = len(re.findall(line, server.log_text()))
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while len(re.findall(line, server.log_text())) == known:
            self.assertIsNone(server.process.poll(), "SIGHUP ended the server")
            self.assertLess(time.monotonic(), deadline, server.log_text())
            time.sleep(0.02)

    def test_sighup_replaces_the_keys_of_both_front_ends(self):
        path = self.file(b"old\n")
        server = Server("--api-key-file", path)
        self.addCleanup(server.close)
        self.assertEqual((self.status(server, "old"), self.status(server, "new")), (200, 401))
        self.file(b"new\r\nother\n")
        self.reload(server, "SIGHUP: 2 API keys are in force")
        self.assertEqual((self.status(server, "old"), self.status(server, "new")), (401, 200))
        self.assertTrue(self.grpc_ends_well(server, "new"))
        self.assertFalse(self.grpc_ends_well(server, "old"))

    def test_keys_that_cannot_be_read_leave_the_old_ones_in_force(self):
        path = self.file(b"old\n")
        server = Server("--api-key-file", path)
        self.addCleanup(server.close)
        for data in (b"\n", b"in side\n", None):
            with self.subTest(data=data):
                if data is None:
                    pathlib.Path(path).unlink()
                else:
                    self.file(data)
                self.reload(server, "SIGHUP: the old API keys stay")
                self.assertEqual((self.status(server, "old"), self.status(server, "")), (200, 401))

    def test_sighup_of_a_server_without_keys_ends_nothing(self):
        server = Server()
        self.addCleanup(server.close)
        self.reload(server, "SIGHUP: 0 API keys are in force")
        self.assertEqual(server.get("/v1/models").status, 200)


if __name__ == "__main__":
    unittest.main()
