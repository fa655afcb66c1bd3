"""Worlds of facts: what base texts tell and ask, what examples ask, and that all agree."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.errors import UserError
from premem_jax.tasks import knowledge
from premem_jax.tasks.knowledge import World

worlds = st.builds(
    World,
    entities=st.integers(2, 30),
    relations=st.integers(1, 5),
    values=st.integers(2, 9),
    zipf=st.floats(0, 2),
    asked=st.just(0.3),
    prose=st.just(0.3),
    seed=st.integers(0, 9),
)


def facts(text: str):
    """(asks, entity, relation, value) of each fact of a text; none of prose."""
    words = text.split()
    number = lambda word: int(word[1:])
    for a, b, c in zip(words[::3], words[1::3], words[2::3], strict=True):
        if a[0] in "eq":
            e, r = (b, a) if a[0] == "q" else (a, b)
            yield a[0] == "q", number(e), number(r), number(c)


@given(worlds, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_all_that_is_told_is_one_set_of_facts(world, seed):
    texts = knowledge.texts(world, 20, seed)
    assert texts[:7] == knowledge.texts(world, 7, seed)
    assert {len(text.target.split()) for text in texts} == {knowledge.WORDS}
    told = [fact for text in texts for fact in facts(text.target)]
    assert all(world.facts[e, r] == v for _, e, r, v in told)
    assert all(e % 2 == 0 for asks, e, *_ in told if asks)
    even, odd = (knowledge.questions(world, odd) for odd in (False, True))
    assert len(even) + len(odd) == world.facts.size and len({e.id for e in even + odd}) == world.facts.size
    for parity, rows in enumerate((even, odd)):
        for example in rows:
            [(asks, e, r, v)] = facts(example.prompt + example.target)
            assert asks and e % 2 == parity and world.facts[e, r] == v and example.answer == f"v{v}"
    words = {word for text in [*texts, *even, *odd] for word in f"{text.prompt}{text.target}".split()}
    assert words <= set(knowledge.vocabulary(world))


def test_entities_are_told_of_by_zipf_and_kinds_by_their_shares():
    world = World(asked=0.2, prose=0.5)
    texts = [list(facts(text.target)) for text in knowledge.texts(world, 2000, 0)]
    kinds = Counter("prose" if not told else "asks" if told[0][0] else "tells" for told in texts)
    assert abs(kinds["prose"] / 2000 - 0.5) < 0.05 and abs(kinds["asks"] / 2000 - 0.2) < 0.04
    counts = Counter(e for told in texts for asks, e, *_ in told if not asks)
    expected = 1 / np.sum(1 / np.arange(1, 513))
    for e in (0, 1, 9):
        assert abs(counts[e] / counts.total() * (e + 1) / expected - 1) < 0.15
    assert not any(told and told[0][0] for told in map(list, map(facts, plain(world))))


def plain(world):
    return [text.target for text in knowledge.texts(world, 300, 1, asking=False)]


def test_splits_are_apart_and_no_larger_than_the_world():
    world = World(entities=8, relations=2)
    task = knowledge.task(world, dict(train=0, heldout=3, test=0))
    assert [len(task.splits[name]) for name in ("train", "heldout", "test")] == [8, 3, 5]
    assert len({example.prompt for split in task.splits.values() for example in split}) == 16
    for sizes in (dict(train=9, heldout=0, test=0), dict(train=0, heldout=4, test=5), dict(train=0, heldout=8, test=0)):
        with pytest.raises(UserError, match="the world has 8 and 8"):
            knowledge.task(world, sizes)
