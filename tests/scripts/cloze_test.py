# SPDX-License-Identifier: Apache-2.0
"""tools/data/make_cloze.py: the right choice is what the text goes on with, the others are not, and the
same text gives the same tasks; the committed tasks have the same form."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests/data/heldout_sample.txt"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Cloze(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name, "tasks.jsonl")

    def make(self, text=SAMPLE):
        subprocess.run([sys.executable, ROOT / "tools/data/make_cloze.py", text, self.out], check=True,
                       stdout=subprocess.DEVNULL)
        return read(self.out)

    def check_form(self, tasks):
        for task in tasks:
            self.assertEqual(len(set(task["choices"])), 4)
            self.assertEqual({len(choice.split()) for choice in task["choices"]}, {6})
            self.assertIn(task["answer"], range(4))
            self.assertTrue(600 <= len(task["context"]) <= 900, len(task["context"]))

    def test_only_the_right_choice_follows_its_context(self):
        tasks = self.make()
        self.assertGreater(len(tasks), 30)
        self.check_form(tasks)
        text = " ".join(SAMPLE.read_text(encoding="utf-8").split())
        for task in tasks:
            for i, choice in enumerate(task["choices"]):
                self.assertEqual(f"{task['context']} {choice}" in text, i == task["answer"], choice)

    def test_no_two_contexts_overlap(self):
        text = " ".join(SAMPLE.read_text(encoding="utf-8").split())
        begins = sorted((text.index(task["context"]), len(task["context"])) for task in self.make())
        for (begin, length), (following, _) in zip(begins, begins[1:]):
            self.assertLess(begin + length, following)

    def test_the_same_text_gives_the_same_tasks(self):
        self.assertEqual(self.make(), self.make())

    def test_the_committed_tasks(self):
        tasks = read(ROOT / "tools/data/cloze.jsonl")
        self.assertEqual(len(tasks), 200)
        self.check_form(tasks)
        answers = [task["answer"] for task in tasks]
        for place in range(4):  # no place is much likelier than a quarter
            self.assertTrue(30 <= answers.count(place) <= 70, answers.count(place))


if __name__ == "__main__":
    unittest.main()
