# SPDX-License-Identifier: Apache-2.0
"""scripts/paper-table and kv-table: figures stand in their cells, and an ordering that does not hold is called so."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"


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
            subprocess.run([sys.executable, SCRIPTS / "paper-table", name, folder + "/out", *paths], check=True,
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
        baseline = {"transformers": "5.17.0", "dtype": "float16", "runs": [
            {"batch_size": 224, "output_throughput": 1424.3, "peak_memory_bytes": 68 * 2**30}]}
        text = self.make("figure5", run, baseline)
        self.assertIn("| kivi2 G32 R32 | 850 | 17,000 | 3.0 | 36.9 |", text)
        self.assertIn("| Transformers 5.17.0, float16 | 224 | 1,424 | 68.0 | - |", text)


def study(rises, residual_rise):
    """JSON of `kivi kv-stats`: the rise at 2 bits by axes ("CT": keys per channel, values per token).
    Two windows, 0.02 apart in every simulation, but for values alone, whose order they contradict."""
    def row(rise, change, **names):
        return {**names, "perplexity": 20.0, "nll_rise": rise, "change": change,
                "window_rise": [rise - 0.01, rise + 0.01], "window_change": [change, change]}

    simulated = [row(rises[key + value] if bits == 2 else 0.001, 0.5,
                     name=f"K{bits}{key} V{bits}{value}", residual=0)
                 for bits in (2, 4) for key in "TC" for value in "TC"]
    simulated += [row(rise, 0.5, name="K2C V2T", residual=residual)
                  for residual, rise in residual_rise.items()]
    simulated += [row(0.04, 0.3, name="K16 V2T", residual=0),
                  row(0.03, 0.2, name="K16 V2C", residual=0) | {"window_rise": [0.05, 0.01]}]
    axes = [(bits, axis, group) for bits in (2, 4) for group in (32, 64, 128)
            for axis in ("token", "channel")]
    return {"model": "tiny", "text": "text.txt", "windows": 2, "window": 128, "group": 32,
            "perplexity": {"perplexity": 19.5}, "simulated": simulated,
            "key_groups": [row(group / 1000, 0.2, group=group) for group in (32, 64, 128)],
            "mean": {"attention_output": [{"name": s["name"], "error": 0.25} for s in simulated],
                     "reconstruction": [{"bits": bits, "axis": axis, "group": group,
                                         "key_error": group / 640, "value_error": 0.1}
                                        for bits, axis, group in axes]}}


class KvTable(unittest.TestCase):
    def test_table1_has_rows_and_every_ordering_by_model(self):
        data = study({"CT": 0.05, "TT": 0.2, "CC": 0.04, "TC": 0.3}, {32: 0.03, 128: 0.06})
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "tiny.json")
            path.write_text(json.dumps(data), encoding="utf-8")
            subprocess.run([sys.executable, SCRIPTS / "kv-table", "table1", folder, path], check=True,
                           stdout=subprocess.DEVNULL)
            text = pathlib.Path(folder, "table1.md").read_text(encoding="utf-8")
            kept = json.loads(pathlib.Path(folder, "table1.json").read_text(encoding="utf-8"))[0]
        self.assertIn("| 2 bits, K-C V-T | 20.0000 | 0.0500 ± 0.0100 | 0.5000 | 25.00 | 63.53 |", text)
        self.assertIn("| G 128 | 20.0000 | 0.1280 ± 0.0100 | 0.2000 | 20.00 |", text)
        self.assertIn("| V-T | 20.0000 | 0.0400 ± 0.0100 | 0.3000 | 25.00 |", text)
        self.assertIn("values per token | 0.0500 < 0.2000 (+0.1500 ± 0.0000) |", text)
        self.assertIn("keys per channel | **0.0500 >= 0.0400 (-0.0100 ± 0.0000)** |", text)
        self.assertIn("| values alone per token, not per channel | *0.0400 >= 0.0300 "
                      "(-0.0100 ± 0.0300)* |", text)
        self.assertIn("| values alone per token, not per channel | **0.3000 >= 0.2000 "
                      "(-0.1000 ± 0.0000)** |", text)
        self.assertIn("| kivi2 with R 32, not without a residual | 0.0300 < 0.0500 ", text)
        self.assertIn("| kivi2 with R 128, not R 32 | **0.0600 >= 0.0300 ", text)
        self.assertIn("| keys alone, G 32, not 128 | 0.0320 < 0.1280 ", text)
        self.assertNotIn("window_rise", kept["simulated"][0])
        self.assertAlmostEqual(kept["simulated"][0]["nll_rise_error"], 0.01)
        self.assertEqual(len(kept["orderings"]["rise"]), 10)


if __name__ == "__main__":
    unittest.main()
