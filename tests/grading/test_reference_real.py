"""Kernel against reference on every GSM8K and MATH solution and on all outputs of real models."""

import jax
import numpy as np
import pytest

from premem_jax.grading.answers import vocabulary
from premem_jax.grading.reference import find_answer
from premem_jax.grading.rules import GSM8K, Phrase
from premem_jax.grading.verdict import Verdict
from tests.grading.vocabularies import (
    REAL,
    SINGLE_BYTES,
    agree,
    byte_vocabulary,
    cutter,
    grade_rows,
    jsonl,
    solutions,
)

TASKS = ("gsm8k", "math")
LONG = ((512, 1024), (64, 8192))


def changed(answer: bytes | None, row: int) -> bytes:
    """Another answer, in one of five ways that the rules all call different."""
    answer = answer or b""
    return [answer + b"1", b"-" + answer, b"0" + answer, answer[:-1] + b"?", answer + b".0"][row % 5]


@pytest.mark.parametrize("task", TASKS)
def test_solutions_answer_themselves(task):
    texts = solutions(task)
    own = [find_answer(text, task) for text in texts]
    verdicts = grade_rows(texts, own, byte_vocabulary(task), task)
    np.testing.assert_array_equal(agree(verdicts, texts, own, task), Verdict.CORRECT)
    open_rows = np.flatnonzero(verdicts == Verdict.UNDECIDED)
    assert len(open_rows) == {"gsm8k": 0, "math": 3}[task]  # three train answers of MATH have over 126 bytes
    assert max(open_rows, default=0) < 7500 and all(len(own[i]) > 126 for i in open_rows)


def test_solutions_give_the_answers_of_the_data():
    """All but the two boxes without braces."""
    rows = [row for split in ("train", "test") for row in jsonl(f"data/math/{split}.jsonl")]
    differ = [row["id"] for row in rows if find_answer(row["solution"].encode(), "math") != row["answer"].encode()]
    assert differ == ["train/algebra/24014.json", "train/algebra/25040.json"]


@pytest.mark.parametrize("task", TASKS)
def test_solutions_against_other_answers(task):
    texts = solutions(task)
    other = [changed(find_answer(text, task), i) for i, text in enumerate(texts)]
    verdicts = grade_rows(texts, other, byte_vocabulary(task), task)
    expected = agree(verdicts, texts, other, task)
    assert np.mean(expected == Verdict.WRONG) > 0.99 and np.mean(verdicts == Verdict.UNDECIDED) <= 0.005


@pytest.mark.parametrize("rules", TASKS)
@pytest.mark.parametrize("file", ["gsm8k_graded", "math_graded"])
def test_real_outputs(file, rules):
    rows = jsonl(f"data/outputs/{file}.jsonl")
    texts, answers = [row["output"].encode() for row in rows], [row["gt"].encode() for row in rows]
    verdicts = grade_rows(texts, answers, byte_vocabulary(rules), rules)
    agree(verdicts, texts, answers, rules)
    assert np.mean(verdicts == Verdict.UNDECIDED) <= 0.005


def test_real_outputs_get_the_labels_of_their_authors():
    """All 5,276 labels of openai/grade-school-math agree; the 11 responses without an answer are labelled false."""
    rows = [row for row in jsonl("data/outputs/gsm8k_graded.jsonl") if row["label_by"] == "openai"]
    rules = GSM8K._replace(phrases=(Phrase(b"A: ", first=True, trim=False),))
    texts, answers = [row["output"].encode() for row in rows], [row["gt"].encode() for row in rows]
    verdicts = grade_rows(
        texts, answers, jax.device_put(vocabulary(SINGLE_BYTES, rules)), rules, shapes=((1024, 2048),)
    )
    agree(verdicts, texts, answers, rules)
    label = np.array([row["label"] for row in rows])
    assert len(rows) == 5276 and label.sum() == 2001
    np.testing.assert_array_equal(verdicts == Verdict.CORRECT, label)
    assert np.sum(verdicts == Verdict.UNPARSED) == 11


def check_real_vocabulary(name, task, texts, shapes):
    token_bytes = REAL[name]()
    own = [find_answer(text, task) for text in texts]
    answers = [changed(answer, i) if i % 3 == 0 else answer for i, answer in enumerate(own)]
    cut = cutter(token_bytes, len(texts))
    tables = jax.device_put(vocabulary(token_bytes, task))
    verdicts = grade_rows([cut(text) for text in texts], answers, tables, task, shapes=shapes)
    expected = agree(verdicts, texts, answers, task)
    assert np.mean(expected == Verdict.CORRECT) > 0.6
    assert all(len(own[i]) > 126 for i in np.flatnonzero(verdicts == Verdict.UNDECIDED))


@pytest.mark.parametrize("name,task", [("llama3", "math"), pytest.param("gemma", "gsm8k", marks=pytest.mark.slow)])
def test_real_vocabularies(name, task):
    check_real_vocabulary(name, task, [text for text in solutions(task)[::16] if len(text) < 1000], shapes=LONG[:1])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", REAL)
def test_every_solution_in_real_vocabularies(name, task):
    check_real_vocabulary(name, task, solutions(task), shapes=LONG)
