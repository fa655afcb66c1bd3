"""What the benchmarks are run on, and how they tell that contenders agree."""

import json

import numpy as np

from benchmarks import workload
from benchmarks.run import agreement
from premem_jax.data import tokenizer_files
from tests.shared import shared


def test_lengths_are_those_of_gsm8k():
    """Of the middle examples of 64 equal parts of the training set, sorted by length in Llama 3's tokens."""
    lines = shared("data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = tokenizer_files.load(shared("data/tokenizers/tokenizer_llama3.tiktoken"))
    rows = [json.loads(line) for line in lines]
    texts = [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in rows]
    lengths = [(len(prompt), len(target)) for prompt, target in tokenizer.encode_pairs(texts)]
    lengths.sort(key=sum)  # equal sums stay in the order of the file
    assert tuple(lengths[int((i + 0.5) / 64 * len(lengths))] for i in range(64)) == workload.LENGTHS


def test_batches_hold_whole_examples(tmp_path):
    """Two batches hold each example once, cut at the length, and the weights are 1 on its target alone."""
    (tmp_path / "workload.json").write_text('{"dtype": "float32"}')
    (tmp_path / "config.json").write_text('{"vocab_size": 500}')
    given = workload.Workload(tmp_path)
    rows = {}
    for step in range(2):
        batch = given.batch(step)
        for tokens, weights in zip(batch["tokens"], batch["weights"], strict=True):
            rows[tokens[tokens > 0].tobytes()] = int(weights.sum())
    T = workload.TRAIN_LENGTH
    expected = {np.concatenate(e)[:T].tobytes(): min(len(e[1]), T - len(e[0])) for e in given.examples}
    assert rows == expected and len(rows) == len(workload.LENGTHS)


def test_agreement():
    """Losses within 1e-3; greedy tokens count up to the first that differs, whatever comes after it."""
    assert agreement("update", dict(output=[2.0, 1.0]), dict(output=[2.0, 1.0005])).endswith("same")
    assert not agreement("update", dict(output=[2.0, 1.0]), dict(output=[2.0, 1.002])).endswith("same")
    responses = np.arange(40).reshape(2, 2, 10)
    other = responses.copy()
    other[0, 0, 9] = -1
    assert agreement("greedy", dict(output=responses), dict(output=other)) == "0.9750 of tokens same"
    other[1, 0, 2] = -1
    assert agreement("greedy", dict(output=responses), dict(output=other)) == "0.7750 of tokens"
