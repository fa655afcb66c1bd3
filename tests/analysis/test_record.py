"""The record of finished runs is what the benchmark counts, and the sentence about it says which runs it is of."""

import pytest

from benchmarks.estimates import record
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.record import RECORDS, sentence
from tests.shared import shared


@pytest.mark.parametrize("task", ["gsm8k", "math"])
def test_the_record_of_the_published_runs(task):
    _, *counts, error = record(task, read_runs(shared(f"data/traces/{task}_llama3_8b")))
    assert [int(count) for count in counts] == list(RECORDS[task][1:]) and float(error) < 0.05


def test_a_task_without_a_record_is_told_of_all_others():
    assert "13 finetunes of Llama3 8B on GSM8K on record" in sentence("gsm8k") and "in 11, within 10 in 13" in sentence(
        "gsm8k"
    )
    text, total = sentence("mine"), [sum(row[i] for row in RECORDS.values()) for i in (1, 2, 3)]
    assert (
        "No finetunes of this task" in text and f"of {total[0]} others" in text and f"within 10 in {total[2]}" in text
    )
