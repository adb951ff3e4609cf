# SPDX-License-Identifier: Apache-2.0
"""aiperf sends streamed chats and reads their usage. It takes tokenizers from a cache of Hugging Face's
alone, so the model's files are put into one."""

import json
import pathlib
import shutil
import unittest

from load_support import MODEL, OUTPUT_TOKENS, REQUESTS, UnderLoad

REVISION = "0" * 40


class Aiperf(UnderLoad):
    def cache_with_tokenizer(self):
        entry = self.folder / "home" / "hub" / "models--kivi--tales-llama"
        snapshot = entry / "snapshots" / REVISION
        snapshot.mkdir(parents=True)
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text(REVISION)
        for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
            shutil.copy(pathlib.Path(MODEL) / name, snapshot)
        return str(self.folder / "home")

    def test_concurrent_chats(self):
        out = self.folder / "out"
        self.run_program(
            "aiperf", "profile", "-m", "tales-llama", "--tokenizer", "kivi/tales-llama", "--url", self.target,
            "--endpoint-type", "chat", "--streaming", "--concurrency", "4", "--request-count", str(REQUESTS),
            "--synthetic-input-tokens-mean", "200", "--synthetic-input-tokens-stddev", "0",
            "--output-tokens-mean", str(OUTPUT_TOKENS), "--output-tokens-stddev", "0",
            "--extra-inputs", "ignore_eos:true", "--ui", "none", "--output-artifact-dir", str(out),
            HF_HOME=self.cache_with_tokenizer())
        report = json.loads((out / "profile_export_aiperf.json").read_text())
        self.assertEqual(report["error_summary"], [])
        self.check_totals(report["completed_request_count"]["avg"], report["total_usage_prompt_tokens"]["avg"],
                          report["total_usage_completion_tokens"]["avg"])


if __name__ == "__main__":
    unittest.main()
