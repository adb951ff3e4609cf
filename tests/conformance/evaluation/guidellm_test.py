# SPDX-License-Identifier: Apache-2.0
"""guidellm sends streamed chats and reads their usage."""

import json
import unittest

from load_support import MODEL, OUTPUT_TOKENS, REQUESTS, UnderLoad


class Guidellm(UnderLoad):
    def test_concurrent_chats(self):
        report = self.folder / "report.json"
        self.run_program(
            "guidellm", "run", "--backend", f"kind=openai_http,target={self.target}",
            "--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={REQUESTS}",
            "--tokenizer", f"kind=hf_auto,model={MODEL}",
            "--data", f"kind=synthetic_text,prompt_tokens=200,output_tokens={OUTPUT_TOKENS}",
            "--output", f"kind=json,path={report}", "--disable-progress")
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
        self.assertEqual((len(requests["errored"]), len(requests["incomplete"])), (0, 0))
        done = requests["successful"]
        self.check_totals(len(done), sum(r["prompt_tokens"] for r in done), sum(r["output_tokens"] for r in done))


if __name__ == "__main__":
    unittest.main()
