"""scripts/paper-table: figures stand in their cells, and an ordering that does not hold is called so."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "scripts" / "paper-table"


def cell(name, kl, perplexity=20.0):
    return {"format": name, "bytes_per_token": 768.0,
            "perplexity": {"windows": 2, "tokens": 190, "nll": 3.0, "perplexity": perplexity},
            "divergence": {"kl_mean": kl, "kl_p99": 10 * kl, "top1_agreement": 0.75,
                           "nll_change": 0.1}}


def evaluation(cells):
    return {"kind": "eval", "model": "models/tiny", "text": "a/text.txt", "window": 96,
            "results": cells}


class PaperTable(unittest.TestCase):
    def make(self, name, *files):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for i, data in enumerate(files):
                paths.append(pathlib.Path(folder, f"{i}.json"))
                paths[-1].write_text(json.dumps(data), encoding="utf-8")
            subprocess.run([sys.executable, SCRIPT, name, folder + "/out", *paths], check=True,
                           stdout=subprocess.DEVNULL)
            out = pathlib.Path(folder, "out")
            self.assertEqual(json.loads((out / f"{name}.json").read_text()), list(files))
            return (out / f"{name}.md").read_text(encoding="utf-8")

    def test_table3_has_rows_orderings_and_pass_keys(self):
        keys = {"format": "fp16", "passkey": [{"length": 384, "depth": 0.5, "trials": 3, "found": 2}]}
        text = self.make("table3", evaluation([cell("fp16", 0), cell("kivi4 G32 R32", 0.001),
                                               cell("kivi2 G32 R32", 0.02, 21.0)]),
                         evaluation([keys]))
        self.assertIn("| kivi2 G32 R32 | 768 | 21.0000 | 1.0500 | 2.00e-02 | 2.00e-01 | 0.7500 |", text)
        self.assertIn("R 32: 4 bits diverge less than 2: 1.00e-03 < 2.00e-02, holds", text)
        self.assertIn("| fp16 | 2 of 3 |", text)
        self.assertNotIn("does not hold", text)

    def test_an_infinite_figure_is_null_in_the_json(self):
        text = self.make("table3", evaluation([cell("fp16", 0), cell("kivi4 G32 R32", 0.001),
                                               {**cell("kivi2 G32 R32", 0, None),
                                                "divergence": dict.fromkeys(
                                                    ("kl_mean", "kl_p99", "top1_agreement",
                                                     "nll_change"))}]))
        self.assertIn("| kivi2 G32 R32 | 768 | inf | inf | inf | inf |", text)
        self.assertIn("R 32: 4 bits diverge less than 2: 1.00e-03 < inf, holds", text)

    def test_table5_says_where_an_ordering_fails_and_what_is_refused(self):
        refused = {"format": "kivi2 G64 R32", "refused": "R is 32"}
        text = self.make("table5", evaluation([
            cell("fp16", 0), cell("kivi2 G32 R64", 0.02), cell("kivi2 G32 R128", 0.03),
            cell("kivi2 G64 R64", 0.05), refused]))
        self.assertIn("kivi2 G 32: R 128 diverges less than R 64: 3.00e-02 >= 2.00e-02, "
                      "**does not hold**", text)
        self.assertIn("kivi2 R 64: G 32 diverges less than G 64: 2.00e-02 < 5.00e-02, holds", text)
        self.assertIn("Refused: R is 32.", text)

    def test_figure5_has_a_row_a_run(self):
        run = {"kv_cache": "kivi2 G32 R32", "device": "d", "model": "m", "prompt_len": 161,
               "output_len": 338, "memory_bytes": {"device_used": 3 * 2**30},
               "runs": [{"batch_size_max": 850, "output_throughput": 17000.4, "median_itl_ms": 36.94}]}
        self.assertIn("| kivi2 G32 R32 | 850 | 17,000 | 3.0 | 36.9 |", self.make("figure5", run))


if __name__ == "__main__":
    unittest.main()
