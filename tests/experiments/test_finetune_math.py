"""A finetune on real problems of MATH: prepared, tokenized, trained on, sampled and graded by the rules of MATH."""

import json
from pathlib import Path

import numpy as np
import pytest

from premem_jax.analysis.trace import read_trace
from premem_jax.grading.reference import grade_bytes
from tests.processes import finish
from tests.shared import shared

CONFIG = Path(__file__).parents[1] / "configs" / "tiny_math.py"
EXAMPLES = 8


@pytest.fixture
def solutions(tmp_path):
    """The shortest problems of each split, in the files that a user would name; their solutions by split."""
    (tmp_path / "data").mkdir()
    solutions = {}
    for split in ("train", "test"):
        lines = shared(f"data/math/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = sorted(map(json.loads, lines), key=lambda row: len(row["problem"] + row["solution"]))[:EXAMPLES]
        text = "".join(json.dumps({k: row[k] for k in ("problem", "solution", "level", "type")}) + "\n" for row in rows)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text)
        solutions[split] = [row["solution"] for row in rows]
    return solutions


def test_math_is_memorized_and_graded_by_its_own_rules(solutions, tmp_path):
    folders = f"--config.data.path={tmp_path / 'data'}", f"--config.cache={tmp_path / 'cache'}"
    done = finish(*folders, f"--workdir={tmp_path / 'run'}", config=CONFIG)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    trace = read_trace(tmp_path / "run" / "trace")
    train = trace.split("train")
    assert np.all(train.nll[-1] < 0.2) and train.accuracy[0].mean() == 0 and train.accuracy[-1].mean() > 0.7
    assert summary["decided_on_host"] == sum(split.decided_on_host.sum() for split in trace.splits.values())

    texts = (tmp_path / "run" / "samples").glob("*.jsonl")
    texts = [json.loads(line) for path in texts for line in path.read_text().splitlines()]
    assert len(texts) == 3 * EXAMPLES
    for text in texts:
        answer = solutions[text["split"]][text["example"]].rpartition(r"\boxed{")[2].partition("}")[0]
        for response in text["responses"]:
            verdict = grade_bytes(response["text"].encode(), answer.encode(), "math")
            assert response["verdict"] == verdict.name.lower()
    assert {r["verdict"] for text in texts for r in text["responses"]} == {"correct", "wrong", "unparsed"}
