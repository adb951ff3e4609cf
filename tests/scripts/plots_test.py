# SPDX-License-Identifier: Apache-2.0
"""scripts/plot: what is drawn is what the JSON says, in its place; what no file has is not drawn."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

PLOT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "plot"
SVG = "{http://www.w3.org/2000/svg}"


def run_of(batch, output, decode=None):
    run = {"batch_size_max": batch, "output_throughput": output}
    return run | ({"decode": decode} if decode else {})


class Plots(unittest.TestCase):
    def draw(self, files):
        """{name: SVG's root} of what is drawn from {name: JSON}."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                pathlib.Path(folder, name + ".json").write_text(json.dumps(data), encoding="utf-8")
            subprocess.run([sys.executable, PLOT, "--out", folder + "/out", folder], check=True,
                           stdout=subprocess.DEVNULL)
            return {path.stem: ElementTree.parse(path).getroot()
                    for path in pathlib.Path(folder, "out").glob("*.svg")}

    def test_throughput_by_batch(self):
        drawn = self.draw({
            "paper-fp16": {"kv_cache": "fp16", "runs": [run_of(200, 1000)]},
            "batch64-fp16": {"kv_cache": "fp16", "runs": [run_of(100, 500)]},
            "paper-kivi2": {"kv_cache": "kivi2 G32 R32", "runs": [run_of(800, 2000)]},
            "stream-8b": {"kv_cache": "kivi4 G32 R32", "runs": [run_of(1, 1)]},
        })
        self.assertEqual(set(drawn), {"throughput-batch"})
        svg = drawn["throughput-batch"]
        self.assertEqual(len(svg.findall(SVG + "polyline")), 2)
        circles = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.findall(SVG + "circle")]
        self.assertEqual(len(circles), 3)
        # fp16's two points, then kivi2's: equal ratios of both axes, from the frame's corner.
        (x1, y1), (x2, y2), (x3, y3) = circles
        left, bottom = 2 * x1 - x2, 2 * y1 - y2  # where (0, 0) lies, since 200 = 2 * 100 etc.
        self.assertAlmostEqual((x3 - left) / (x1 - left), 8, delta=0.05)
        self.assertAlmostEqual((y3 - bottom) / (y1 - bottom), 4, delta=0.05)

    def test_decode_by_context(self):
        decode = {"mean_context": 2000, "throughput": 5000}
        drawn = self.draw({"decode-2k-kivi2": {"kv_cache": "kivi2 G32 R32",
                                               "runs": [run_of(9, 9, decode)]}})
        self.assertEqual(set(drawn), {"throughput-context"})
        texts = [t.text for t in drawn["throughput-context"].findall(SVG + "text")]
        self.assertIn("5,000", texts)

    def test_divergence_by_bits(self):
        def cell(name, size, kl):
            return {"format": name, "bytes_per_token": size, "divergence": {"kl_mean": kl}}
        text = lambda kl: {"kind": "eval", "model": "m.gguf", "results": [
            cell("fp16", 1600, 0), cell("kivi2 G32 R32", 300, 10 * kl),
            cell("kivi2.5 G32 R32 S32", 250, kl)]}
        drawn = self.draw({"one": text(0.01), "two": [text(0.03)]})
        svg = drawn["bits-m"]
        circles = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.findall(SVG + "circle")]
        texts = [t.text for t in svg.findall(SVG + "text")]
        self.assertEqual([t for t in texts if t.startswith("kivi")], ["kivi2.5 0.02", "kivi2 0.2"])
        zero = float(next(t.get("x") for t in svg.findall(SVG + "text") if t.text == "0"))
        self.assertAlmostEqual((circles[1][0] - zero) / (circles[0][0] - zero), 3 / 2.5, delta=0.02)
        # Ten times as much is one decade of the axis.
        ys = {t.text: float(t.get("y")) for t in svg.findall(SVG + "text")}
        self.assertAlmostEqual(circles[0][1] - circles[1][1], ys["0.01"] - ys["0.1"], delta=0.2)

    def test_memory_stacks_to_the_sum(self):
        memory = {"weights": 2**30, "pages": 2**31, "residual": 2**30, "staging": 0, "workspace": 0,
                  "device_used": 5 * 2**30}
        svg = self.draw({"a": {"memory_bytes": memory}})["memory"]
        heights = [float(r.get("height")) for r in svg.findall(SVG + "rect")
                   if re.fullmatch(r"[\d.]+", r.get("height")) and float(r.get("y")) > 0
                   and r.get("width") != "12"]
        self.assertEqual(len(heights), 5)
        self.assertAlmostEqual(heights[1], 2 * heights[0], delta=0.2)
        self.assertAlmostEqual(heights[2], heights[0], delta=0.2)

    def test_attention_has_a_bar_a_format(self):
        rows = [{"op": "kv_attend", "shape": "(8, 4096)", "format": name, "copy_share": share}
                for name, share in (("fp16", 0.9), ("kivi2 G32 R32", 0.45))]
        rows.append({"op": "matmul", "shape": "x", "copy_share": 1})
        svg = self.draw({"kernels-x": {"model": "m", "rows": rows}})["attention"]
        bars = [r for r in svg.findall(SVG + "rect")
                if r.get("fill") in ("#4c566a", "#1f6fb2") and r.get("width") != "12"]
        self.assertEqual(len(bars), 2)
        self.assertAlmostEqual(float(bars[0].get("height")) / float(bars[1].get("height")), 2,
                               delta=0.02)

    def test_divergence_has_a_line_a_format_and_group(self):
        def cell(name, kl):
            return {"format": name, "divergence": {"kl_mean": kl}}

        part = {"kind": "eval", "model": "models/tiny", "results": [
            cell("fp16", 0), cell("kivi2 G32 R32", 0.04), cell("kivi2 G32 R64", 0.02),
            cell("kivi2 G64 R64", 0.03), {"format": "kivi2 G64 R32", "refused": "no"}]}
        drawn = self.draw({"table5": [part], "other": {"kind": "eval", "model": "x", "results": []}})
        self.assertEqual(set(drawn), {"residual-tiny"})
        svg = drawn["residual-tiny"]
        self.assertEqual(len(svg.findall(SVG + "polyline")), 1)  # G 64 has one point, no line
        (x1, y1), (x2, y2) = [(float(c.get("cx")), float(c.get("cy")))
                              for c in svg.findall(SVG + "circle")]
        axis = 420 - 56  # the frame's bottom
        self.assertAlmostEqual((axis - y1) / (axis - y2), 2, delta=0.01)
        self.assertAlmostEqual((x2 - 76) / (x1 - 76), 2, delta=0.01)
        self.assertIn("40", [t.text for t in svg.findall(SVG + "text")])

    def test_an_infinite_divergence_is_left_out(self):
        cells = [{"format": f"kivi2 G32 R{residual}", "divergence": {"kl_mean": kl}}
                 for residual, kl in ((32, None), (64, 0.02), (128, 0.01))]
        drawn = self.draw({"a": {"kind": "eval", "model": "tiny", "results": cells},
                           "b": {"kind": "eval", "model": "all-infinite", "results": cells[:1]}})
        self.assertEqual(set(drawn), {"residual-tiny"})
        self.assertEqual(len(drawn["residual-tiny"].findall(SVG + "circle")), 2)


if __name__ == "__main__":
    unittest.main()
