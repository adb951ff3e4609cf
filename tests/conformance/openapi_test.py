# SPDX-License-Identifier: Apache-2.0
"""schemathesis reads /openapi.json and sends what it describes, and what it does not: no server error."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from support import KEY, WithServer


class OpenAPI(WithServer):
    arguments = (*WithServer.arguments, "--max-num-seqs", "16", "--request-timeout", "20")

    def test_the_document_is_valid(self):
        import jsonschema
        import requests
        api = requests.get(self.base + "/openapi.json", timeout=10).json()
        for path, operations in api["paths"].items():
            for operation in operations.values():
                body = operation.get("requestBody")
                if body:
                    schema = body["content"]["application/json"]["schema"]
                    with self.subTest(path=path):
                        jsonschema.Draft202012Validator.check_schema(schema)

    def test_no_server_error(self):
        program = pathlib.Path(sys.executable).with_name("schemathesis")
        folder = tempfile.TemporaryDirectory(prefix="kivi-schemathesis-")  # it keeps a cache where it runs
        self.addCleanup(folder.cleanup)
        run = subprocess.run(
            [program, "run", self.base + "/openapi.json", "--checks", "not_a_server_error", "--max-examples",
             os.environ.get("KIVI_EXAMPLES", "25"), "--header", f"Authorization: Bearer {KEY}", "--request-timeout", "30",
             "--seed", "1", "--phases", "examples,coverage,fuzzing", "--no-color"],
            capture_output=True, text=True, timeout=1200, cwd=folder.name)
        self.assertEqual(run.returncode, 0, run.stdout[-6000:] + run.stderr[-2000:])
        self.assertTrue(self.server.process.poll() is None, "the server has ended")
        self.assertTrue(self.server.wait_idle(60))


if __name__ == "__main__":
    unittest.main()
