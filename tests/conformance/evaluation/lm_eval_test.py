# SPDX-License-Identifier: Apache-2.0
"""lm-eval against the server and against Hugging Face Transformers: the same log-likelihoods.

Prompts are several times as long as the residual of the cache, so most of their keys and values are
quantized while the likelihood of what follows is computed. Nothing is downloaded: the task is made of
tests/data/heldout_sample.txt."""

import json
import os
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                   "OPENAI_API_KEY": "none", "CUDA_VISIBLE_DEVICES": ""})

from harness import MODEL, Server  # noqa: E402

CONTEXT_WORDS, ENDING_WORDS, DOCUMENTS = 250, 8, 6

TASK = """task: kivi_heldout
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: 0
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def documents():
    """Contexts with their true ending, and with that of another document."""
    words = (ROOT / "tests" / "data" / "heldout_sample.txt").read_text().replace("<|story|>", " ").split()
    size = CONTEXT_WORDS + ENDING_WORDS
    pieces = [words[i * size:(i + 1) * size] for i in range(DOCUMENTS)]
    assert all(len(piece) == size for piece in pieces)
    texts = [" ".join(piece[:CONTEXT_WORDS]) for piece in pieces]
    endings = [" ".join(piece[CONTEXT_WORDS:]) for piece in pieces]
    return [{"context": text, "endings": [endings[i], endings[i - 1]]} for i, text in enumerate(texts)]


def evaluate(model, arguments, tasks):
    """The log-likelihoods of every document's endings, and the accuracy."""
    import lm_eval
    out = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=["kivi_heldout"], batch_size=1,
                                  task_manager=tasks, bootstrap_iters=0, log_samples=True, verbosity="ERROR")
    samples = sorted(out["samples"]["kivi_heldout"], key=lambda sample: sample["doc_id"])
    # [(log-likelihood, is greedy)] of each ending
    scores = [[tuple(answer[0]) for answer in sample["resps"]] for sample in samples]
    return scores, out["results"]["kivi_heldout"]["acc,none"]


class LmEval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import lm_eval.tasks
        import transformers
        cls.folder = tempfile.TemporaryDirectory(prefix="kivi-lm-eval-")
        folder = pathlib.Path(cls.folder.name)
        data = folder / "heldout.jsonl"
        docs = documents()
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        (folder / "kivi_heldout.yaml").write_text(TASK.format(file=data))
        cls.tasks = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        cls.shortest = min(len(tokenizer(doc["context"])["input_ids"]) for doc in docs)
        cls.expected, cls.accuracy = evaluate("hf", f"pretrained={MODEL},dtype=float32,device=cpu,add_bos_token=True", cls.tasks)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def check_format(self, cache, residual, tolerance):
        server = Server("--kv-cache-dtype", cache, "--kivi-residual-length", str(residual))
        self.addCleanup(server.close)
        got, accuracy = evaluate(
            "local-completions",
            f"model=tales-llama,base_url=http://127.0.0.1:{server.port}/v1/completions,tokenizer={MODEL},"
            "tokenizer_backend=huggingface,tokenized_requests=True,add_bos_token=True,num_concurrent=4,"
            "max_length=1024", self.tasks)
        self.assertGreater(self.shortest, 2 * residual)
        difference = max(abs(a[0] - b[0]) for mine, theirs in zip(got, self.expected) for a, b in zip(mine, theirs))
        print(f"{cache}, R {residual}: prompts from {self.shortest} tokens, the largest difference of "
              f"{2 * len(got)} log-likelihoods is {difference:.4f}, accuracy {accuracy} and {self.accuracy}")
        self.assertEqual(len(got), DOCUMENTS)
        self.assertLess(difference, tolerance)
        self.assertEqual(accuracy, self.accuracy)

    def test_a_cache_of_16_bits(self):
        self.check_format("fp16", 128, 0.05)

    def test_quantized_caches_with_exact_prompts(self):
        """Prompts attend in 16 bits while they are computed, so that scores are as good as with fp16."""
        for cache in ("kivi4", "kivi2"):
            with self.subTest(cache):
                self.check_format(cache, 128, 0.05)


if __name__ == "__main__":
    unittest.main()
