#!/usr/bin/python3
"""What a start refuses: files that are no files, and more memory than there is.

    BINARY_UNDER_TEST=build/kivi tests/attack/start_test.py [-k NAME]
"""

import os
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from harness import MODEL, kivi  # noqa: E402


class SpecialFiles(unittest.TestCase):
    """A FIFO without a writer must be refused, and must not be waited for."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def model_with(self, name, kind):
        """A copy of the model whose file `name` is a FIFO or a link to a device."""
        model = self.folder / f"{kind}-{name}"
        shutil.copytree(MODEL, model)
        (model / name).unlink()
        if kind == "FIFO":
            os.mkfifo(model / name)
        else:
            (model / name).symlink_to("/dev/zero")
        return str(model)

    def test_a_model_file_that_is_a_fifo_or_a_device_is_refused_by_name(self):
        for name in ("model.safetensors", "config.json", "tokenizer.model"):
            if not (pathlib.Path(MODEL) / name).exists():
                continue
            for kind in ("FIFO", "device"):
                with self.subTest(name=name, kind=kind):
                    code, _, error = kivi("generate", self.model_with(name, kind), "--max-tokens",
                                          "1", "--prompt", "x")
                    self.assertIn(code, (1, 2), error)
                    self.assertIn(name, error)
                    self.assertIn(f"is a {kind}, must be a regular file", error)

    def test_a_settings_file_or_key_file_that_is_a_fifo_is_refused(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        for flag in ("--config", "--api-key-file"):
            with self.subTest(flag=flag):
                code, _, error = kivi("serve", MODEL, flag, str(fifo))
                self.assertEqual(code, 2, error)
                self.assertIn(flag, error)
                self.assertIn("must be a regular file", error)


if __name__ == "__main__":
    unittest.main()
