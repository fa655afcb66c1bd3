"""Graded problems are read back from their text, by rules written here; shares, skeletons and splits are as said."""

import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.tasks import arithmetic, graded_arithmetic

APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
GAIN = r"\b(finds|picks|wins|gives|brings|buys|more than)\b"
LOSS = r"\b(loses|sells|throws|hands|leaves|steals|fewer than)\b"
TIMES = r"\b(pile|swapped|times as many)\b"


@pytest.fixture(scope="module")
def train():
    return graded_arithmetic.problems("train", 2000, seed=0)


def answer_of(prompt: str) -> int:
    """The answer as a reader would find it, sentence by sentence."""
    value, gains, item = None, 0, re.search(r"(?:many|number of) (\w+)[^.]* \?", prompt)[1]
    backwards = re.search(r"at first \?|to begin with \?", prompt)
    if re.search(r"What is the number of", prompt):
        item = re.search(r"number of (\w+) of", prompt)[1]
    for sentence in re.split(r"(?<=[.?]) ", prompt)[:-1]:
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        if not numbers:
            continue
        [number] = numbers
        if re.search(GAIN, sentence):
            gains += number
        elif re.search(LOSS, sentence):
            gains -= number
        elif re.search(TIMES, sentence):
            value *= number
        elif item in sentence or "This makes" in sentence:
            assert value is None
            value = number
    return value - gains if backwards else value + gains


def test_solutions_are_right_and_answer_the_question(train):
    for example in train:
        chain = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", example.target)
        assert all(APPLY[op](int(a), int(b)) == int(c) for a, op, b, c in chain)
        assert example.target.endswith(f" #### {example.answer}") and chain[-1][3] == example.answer
        assert "".join(step[1] for step in chain) == example.metadata["operations"]
        assert answer_of(example.prompt) == int(example.answer), example.prompt
        assert example.target.startswith(" ") and example.prompt == " ".join(example.prompt.split())


def test_types_have_their_shares_and_differ_in_what_they_say(train):
    assert sum(type.share for type in graded_arithmetic.TYPES.values()) == pytest.approx(1)
    counts = Counter(example.metadata["type"] for example in train)
    for name, type in graded_arithmetic.TYPES.items():
        assert abs(counts[name] / len(train) - type.share) < 5 * (type.share / len(train)) ** 0.5
        mine = [example for example in train if example.metadata["type"] == name]
        assert {len(example.metadata["operations"]) for example in mine} == {type.steps}
        assert set("".join(example.metadata["operations"] for example in mine)) == set(type.operations)
        assert {example.prompt.count(" .") for example in mine} == {1 + type.steps + type.distractors}
        assert {example.metadata["difficulty"] for example in mine} == {str(type.steps + type.distractors)}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_problems_are_a_function_of_seed_and_place_and_no_split_shares_one(seed, count):
    splits = {split: graded_arithmetic.problems(split, 12, seed) for split in ("train", "heldout", "test")}
    for split, problems in splits.items():
        assert graded_arithmetic.problems(split, count, seed) == problems[:count]
        assert {arithmetic.split_of(problem.prompt) for problem in problems} == {split}
    questions = [problem.prompt for problems in splits.values() for problem in problems]
    assert len(set(questions)) == len(questions)


def test_variants_have_the_skeleton_and_are_new_questions_of_the_training_split(train):
    for example in train[:60]:
        new = list(islice(graded_arithmetic.variants(example, seed=3), 4))
        assert new == list(islice(graded_arithmetic.variants(example, seed=3), 4))
        assert new != list(islice(graded_arithmetic.variants(example, seed=4), 4))
        for each in new:
            assert dict(each.metadata) == dict(example.metadata) and each.prompt != example.prompt
            assert answer_of(each.prompt) == int(each.answer) and arithmetic.split_of(each.prompt) == "train"


def test_every_word_is_in_the_vocabulary(train):
    words = set(graded_arithmetic.vocabulary())
    texts = [*train, *graded_arithmetic.load("", dict(train=1, heldout=0, test=1), 0, "").base_texts(300, 0)]
    assert {word for e in texts for word in (e.prompt + e.target).split()} <= words
    assert words - set(arithmetic.vocabulary()) == {"than", "did"}  # the others are known from the base phase
