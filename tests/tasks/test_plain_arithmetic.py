"""Problems in plain English: the answer of each is computed again from its question, and the grader agrees."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.errors import UserError
from premem_jax.grading.reference import grade_bytes
from premem_jax.grading.verdict import Verdict
from premem_jax.tasks import arithmetic, plain_arithmetic

LOST, TIMES = r"sells|loses|gone", r"boxes|each|rows"


def answer_of(prompt: str) -> int:
    a, b = map(int, re.findall(r"\d+", prompt))
    return a * b if re.search(TIMES, prompt) else a - b if re.search(LOST, prompt) else a + b


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_problems_are_right_a_function_of_seed_and_place_and_no_split_shares_one(seed, count):
    splits = {split: plain_arithmetic.problems(split, 12, seed) for split in ("train", "heldout", "test")}
    for split, problems in splits.items():
        assert plain_arithmetic.problems(split, count, seed) == problems[:count]
        for problem in problems:
            assert arithmetic.split_of(problem.prompt) == split
            *numbers, result = re.findall(r"\d+", problem.target)
            assert sorted(numbers) == sorted(re.findall(r"\d+", problem.prompt))
            assert answer_of(problem.prompt) == int(result) == int(problem.answer)
            assert plain_arithmetic.final_answer(problem.target) == problem.answer
    questions = [problem.prompt for problems in splits.values() for problem in problems]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(
    "response,verdict",
    [
        (" So, 47+38=85", Verdict.CORRECT),
        (" 40+38=78, 78+7=85.", Verdict.CORRECT),
        (" So, 47+38=84", Verdict.WRONG),
        (" So, 47+38=850", Verdict.WRONG),
        (" 85", Verdict.UNPARSED),
    ],
)
def test_the_last_result_is_the_answer(response, verdict):
    assert grade_bytes(response.encode(), b"85", plain_arithmetic.GRADER) == verdict


def test_a_solution_without_a_result_and_a_split_without_a_size_are_refused():
    for text in ("47 and 38", "47+38= "):
        with pytest.raises(ValueError, match="no result of an equation"):
            plain_arithmetic.final_answer(text)
    with pytest.raises(UserError, match=r"data\.test=0: plain_arithmetic has no end"):
        plain_arithmetic.load("", dict(train=4, heldout=0, test=0), 0, "")
