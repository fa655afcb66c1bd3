"""Answers in rows are read by one set of rules, whoever reads them."""

import json
import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.data import rows
from premem_jax.errors import UserError
from premem_jax.experiments.grade import read_rows
from premem_jax.tasks import task as tasks
from tests.shared import shared

SOLUTION = "9+9=<<9+9=18>>18 #### 18"


def written(tmp_path, *items):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "target": " b", "output": "c"} | item) + "\n" for item in items))
    return str(path)


def read_own(path, task):
    return rows.read(path, partial(tasks.answer_in_row, task))


@pytest.mark.parametrize(
    "value,text", [(18.0, "18"), (1e6, "1000000"), (-2, "-2"), (0.5, "0.5"), ("18\r\n", "18"), (SOLUTION, "18")]
)
def test_numbers_and_solutions_are_their_final_answers(tmp_path, value, text):
    path = written(tmp_path, {"answer": value})
    [example] = read_own(path, "gsm8k").examples
    [row] = read_rows(path, "gsm8k")
    assert example.answer == row.answer.decode() == text


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, True, None, "", " \r\n", [], {"a": 1}, "1\n2", "#### many", 10**400]
)
def test_what_is_no_answer_is_refused_by_line(tmp_path, value):
    path = written(tmp_path, {"answer": "1"}, {"answer": value})
    if value == 10**400:  # a whole number, however long
        assert read_own(path, "gsm8k").examples[1].answer == str(value)
        return
    for read in (read_own, read_rows):
        with pytest.raises(UserError, match=r"rows\.jsonl:2: "):
            read(path, "gsm8k")


def test_the_inputs_that_failed_give_what_they_must(tmp_path):
    lines = shared("data/faults/answers.jsonl").read_text().splitlines()
    got = []
    for line in lines:
        (tmp_path / "one.jsonl").write_text(line + "\n")
        try:
            got.append(read_own(str(tmp_path / "one.jsonl"), "gsm8k").examples[0].answer)
        except UserError as error:
            assert "one.jsonl:1: " in str(error)
            got.append(None)
    assert got == ["18", None, None, "18", None, "1000000"]


@given(st.integers(-(10**15), 10**15), st.sampled_from(["", "\n", "\r\n", "\r"]))
def test_an_integer_is_the_same_however_it_is_written(number, end):
    forms = number, float(number), str(number) + end, f"so it is #### {number}{end}"
    assert {tasks.read_answer("gsm8k", "here", form) for form in forms} == {str(number)}


@given(st.binary(max_size=200))
def test_any_line_is_a_row_or_one_mistake(data):
    """Truncated, nested, no UTF-8: whatever a file holds."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(data + b'\n{"prompt": "a", "target": " b", "output": "c", "answer": 1' + data)
        file.flush()
        for read in (read_own, read_rows):
            try:
                read(file.name, "gsm8k")
            except UserError as error:
                assert file.name in str(error)


@pytest.mark.parametrize(
    "text", ['{"prompt": ' * 5000, '{"prompt": "a", "target": " b", "answer": ' + "9" * 5000 + "}"]
)
def test_deep_nests_and_long_numbers_are_one_mistake(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: "):
        read_own(str(tmp_path / "rows.jsonl"), "gsm8k")


def test_every_task_says_everything_about_itself():
    for name in tasks.names():
        task = tasks.find(name)
        assert task.SIZES in (None, ()) or len(task.SIZES) == 2
        assert callable(task.load) and callable(task.final_answer) and callable(task.is_solution)
        assert task.GRADER or "grader" in task.OPTIONS
    with pytest.raises(UserError, match=f"there is {', '.join(tasks.names())}"):
        tasks.find("gsm9k")
