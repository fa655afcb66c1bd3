"""New examples: none asks what the test asks, none comes twice, and each source says where its candidates end."""

import json
import re
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.data import added
from premem_jax.data.collection import Collector, generated, normal_form, own_samples, pool
from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.tasks import graded_arithmetic
from premem_jax.tasks import task as tasks

answer_of = partial(tasks.answer_of_target, "graded_arithmetic")


@pytest.fixture(scope="module")
def train():
    return graded_arithmetic.problems("train", 12, seed=0)


def rows_of(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(original, n, prompt=None):
    return dict(original=original, prompt=prompt or f"What is {n} plus 1?", target=f" #### {n + 1}", answer=str(n + 1))


@pytest.mark.parametrize(
    "one, other, keeps_numbers",
    [
        ("Anna has 3 apples.", "Tom has 3 apples!", True),
        ("It costs 1,000 dollars", "It  costs 1000.0 dollars", True),
        ("He has three cats", "He has 3 cats", True),
        ("Anna has 3 apples.", "Tom  has 41 apples", False),
    ],
)
def test_what_asks_the_same_has_one_form(one, other, keeps_numbers):
    assert normal_form(one, keeps_numbers) == normal_form(other, keeps_numbers)


@pytest.mark.parametrize(
    "one, other", [("She has 3 apples", "She has 4 apples"), ("He ate 3 pears", "He ate 3 plums"), ("2 + 3", "2 - 3")]
)
def test_what_asks_something_else_has_another(one, other):
    assert normal_form(one, True) != normal_form(other, True)


def test_questions_of_the_test_are_left_out_and_counted(train):
    """The test asks, under other names, what the generator would make first."""
    source = generated(graded_arithmetic.variants, seed=0)
    first = [list(islice(source.candidates(one), 2)) for one in train]
    names = {name: "Zoe" for name in ("Akira", "Anna", "Tom", "Mei", "Paul", "Ivan")}
    test = [Example(0, " ".join(names.get(w, w) for w in each[0].prompt.split()), "", "") for each in first]
    found = Collector(source, test, train).collect(train, [1] * len(train))
    assert found.left_out == {"asked by the test": len(train)}
    assert [new.prompt for new in found.examples] == [each[1].prompt for each in first]
    assert found.originals == [one.id for one in train] and [new.id for new in found.examples] == [*range(12)]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=12, max_size=12), st.integers(0, 3))
def test_rounds_are_disjoint_and_deterministic(counts, seed):
    originals = graded_arithmetic.problems("train", 12, seed=1)
    source = generated(graded_arithmetic.variants, seed)
    one = lambda taken: Collector(source, [], taken).collect(originals, counts).examples
    first = one(originals)
    assert first == one(originals) and len(first) == sum(counts)
    second = one([*originals, *first])
    assert len({(e.prompt, e.target) for e in [*originals, *first, *second]}) == len(originals) + 2 * sum(counts)


def test_a_pool_gives_its_rows_to_their_originals_and_says_how_many_there_are(tmp_path, train):
    path = rows_of(tmp_path / "pool.jsonl", row(0, 5), row(0, 5), row(1, 6, "How much is six plus one"), row(1, 8))
    test = [Example(0, "How much is 7 plus 12 ?", "", "")]
    collector = Collector(pool(path, answer_of), test, train)
    assert collector.most(train[:3]).tolist() == [1, 1, 0]
    found = collector.collect(train[:2], [1, 1])
    assert [example.answer for example in found.examples] == ["6", "9"]
    assert found.left_out == {"asked by the test": 1}
    with pytest.raises(UserError, match="example 0: 2 like it are wanted, and there are 0"):
        collector.collect(train[:1], [2])


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"original": "0"}, "pool.jsonl:2: original must be an id"),
        ({"original": True}, "pool.jsonl:2: original must be an id"),
        ({"target": " #### 7"}, "pool.jsonl:2: the target ends in '7', and the answer is '3'"),
        ({"target": "seven"}, "pool.jsonl:2: the target has no final answer"),
        ({"answer": None}, "pool.jsonl:2: the answer must be"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, bad, words):
    path = rows_of(tmp_path / "pool.jsonl", row(0, 1), row(0, 2) | bad)
    with pytest.raises(UserError, match=words):
        pool(path, answer_of)
    with pytest.raises(UserError, match="cannot be read"):
        pool(str(tmp_path / "none.jsonl"), answer_of)
    with pytest.raises(UserError, match="is empty"):
        pool(rows_of(tmp_path / "empty.jsonl"), answer_of)


def test_only_verified_samples_of_training_questions_are_taken_and_each_once(train):
    right, wrong = {"text": "It is so #### 3", "verdict": "correct"}, {"text": "#### 4", "verdict": "wrong"}
    texts = [
        dict(split="train", example=0, responses=[right, wrong, right]),
        dict(split="test", example=1, responses=[right]),
        dict(split="train", example=2, responses=[wrong, dict(text=train[2].target, verdict="correct")]),
    ]
    collector = Collector(own_samples(texts), train, train[:3])  # though the test asks the same
    assert collector.most(train[:3]).tolist() == [0, 0, 0]
    other_numbers = [replace(one, prompt=re.sub(r"\d+", "39", one.prompt)) for one in train]
    collector = Collector(own_samples(texts), other_numbers, train[:3])
    assert collector.most(train[:3]).tolist() == [1, 0, 0]  # the reference is no new example
    [new] = collector.collect(train[:1], [1]).examples
    assert (new.prompt, new.target, new.answer) == (train[0].prompt, " It is so #### 3", train[0].answer)


def test_what_was_written_is_read_and_damage_is_named(tmp_path, train):
    path = tmp_path / "added.jsonl"
    added.write(path, train)
    assert added.read(path) == train and added.read(path)[0].metadata == train[0].metadata
    path.write_bytes(path.read_bytes().replace(b"####", b"###!", 1))
    with pytest.raises(UserError, match="damaged"):
        added.read(path)
    with pytest.raises(UserError, match="no such file"):
        added.read(tmp_path / "none.jsonl")
