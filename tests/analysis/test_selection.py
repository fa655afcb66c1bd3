"""Strategies against what they say in words, and the allocation of new examples against its definition."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.analysis import selection
from premem_jax.analysis.selection import STRATEGIES, Seen, allocate
from premem_jax.analysis.trace import SplitTrace, Trace
from premem_jax.errors import UserError

P = 1.5
R = 4


def seen(correct, nll, steps=None, alone=None, **settings) -> Seen:
    """What is seen of counts (M, E) out of 4 samples, and of the NLL of targets with and without prompts."""
    correct, nll = np.array(correct), np.array(nll, float)
    M, E = correct.shape
    zeros = np.zeros((M, E), np.int64)
    train = SplitTrace(np.arange(E) * 3 + 5, nll, np.full(E, 9), zeros + R, correct, zeros)
    steps = np.arange(M) + 1 if steps is None else np.array(steps)
    splits = {"train": train}
    if alone is not None:
        splits["train alone"] = replace(train, nll=np.array(alone, float), samples=zeros, correct=zeros)
    return Seen(Trace(steps, steps / 10.0, splits), P, **settings)


@st.composite
def anything_seen(draw):
    M, E = draw(st.integers(1, 4)), draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = rng.choice(["easy", "hard"], E)
    return seen(
        rng.binomial(R, rng.random(E), (M, E)),
        rng.uniform(0, 1, (M, E)),
        share=draw(st.floats(0.05, 1)),
        seed=draw(st.integers(0, 9)),
        round=draw(st.integers(0, 9)),
        difficulty=rng.integers(1, 4, E),
        alone=rng.uniform(1, 3, (M, E)),
        kinds=kinds,
        error=dict(easy=0.1, hard=0.7),
    )


@settings(deadline=None)
@given(anything_seen())
def test_weights_are_weights_and_a_share_is_a_share(it):
    E = len(it.example)
    for name, strategy in STRATEGIES.items():
        weights = strategy(it)
        assert weights.shape == (E,) and np.all(weights >= 0) and np.all(np.isfinite(weights)), name
        np.testing.assert_array_equal(weights, strategy(it), name)
        if name not in ("iid", "oracle", "learnability"):
            assert weights.sum() == max(1, round(it.share * E)) and set(weights) <= {0, 1}, name


def test_who_has_low_values_is_collected_around():
    # 0 is never memorized and half right; 1 is memorized at once and right at once; 2 is memorized late, right early;
    # 3 is memorized before it is ever solved.
    nll = [[0.9, 0.1, 0.9, 0.8], [0.9, 0.1, 0.1, 0.1]]
    it = seen([[1, 4, 4, 0], [2, 4, 4, 4]], nll, below=0.75)
    assert STRATEGIES["pre_memorization"](it).tolist() == [1, 0, 0, 1]
    assert STRATEGIES["pre_memorization_published"](it).tolist() == [1, 1, 0, 1]  # it calls the one known at once low
    assert STRATEGIES["early_accuracy"](it).tolist() == [1, 0, 0, 1]
    few = seen([[1, 4, 4, 0], [2, 4, 4, 4]], nll, share=0.25)
    assert STRATEGIES["high_nll"](few).tolist() in ([1, 0, 0, 0], [0, 0, 1, 0])  # equals, by chance


def test_the_first_evaluation_is_one_of_the_training():
    it = seen([[0, 4], [4, 0], [4, 4]], [[0.9, 0.9]] * 3, steps=[0, 2, 4], below=0.5)
    assert STRATEGIES["early_accuracy"](it).tolist() == [0, 1]


def test_difficulty_ifd_learnability_and_oracle_say_what_they_are():
    it = seen(
        [[0, 2, 4, 2]],
        [[0.9] * 4],
        alone=[[0.8, 1.0, 1.6, 1.1]],  # so the first ratio is above 1
        share=0.5,
        difficulty=np.array([3, 1, 2, 1]),
        kinds=np.array(["a", "b", "b", "a"]),
        error={"a": 0.25, "b": 0.5},
    )
    assert STRATEGIES["difficulty"](it).tolist() == [1, 0, 1, 0]
    assert STRATEGIES["ifd"](it).tolist() == [0, 1, 0, 1]
    assert STRATEGIES["oracle"](it).tolist() == [0.25, 0.5, 0.5, 0.25]
    learnability = STRATEGIES["learnability"](it)
    assert learnability[1] == learnability[3] > learnability[0] == pytest.approx(learnability[2])


@pytest.mark.parametrize("name", ["difficulty", "ifd", "oracle", "pre_memorization"])
def test_a_strategy_says_what_it_lacks(name):
    it = seen([[1, 2]], [[0.9, 0.9]])
    with pytest.raises(UserError, match=r"difficulty|NLL|types|threshold"):
        STRATEGIES[name](Seen(it.trace))


counts = st.lists(st.tuples(st.floats(0, 10) | st.just(0.0), st.integers(0, 20)), min_size=1, max_size=40)


@settings(deadline=None)
@given(counts, st.integers(1, 200), st.integers(0, 5), st.integers(0, 5), st.randoms())
def test_allocation_gives_all_within_its_limits_whatever_the_order(rows, total, seed, round_, random):
    weights, most = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.where(weights < 1e-3, 0, weights)
    example = np.arange(len(rows)) * 7
    if most[weights > 0].sum() < total:
        with pytest.raises(UserError, match="selected"):
            allocate(weights, example, total, seed=seed, round=round_, most_E=most)
        return
    out = allocate(weights, example, total, seed=seed, round=round_, most_E=most)
    assert out.sum() == total and np.all(out <= most) and not out[weights == 0].any() and np.all(out >= 0)
    order = np.array(random.sample(range(len(rows)), len(rows)))
    other = allocate(weights[order], example[order], total, seed=seed, round=round_, most_E=most[order])
    np.testing.assert_array_equal(other, out[order])


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.integers(1, 300), st.integers(0, 9))
def test_every_count_is_the_share_rounded_down_or_up(weights, total, seed):
    weights = np.array(weights)
    out = allocate(weights, np.arange(len(weights)), total, seed=seed, round=0)
    assert np.all(np.abs(out - total * weights / weights.sum()) < 1 + 1e-6)


def test_the_mean_count_is_the_share():
    weights = np.array([0.5, 1.0, 1.0, 3.0, 0.0])
    draws = [allocate(weights, np.arange(5), 7, seed=seed, round=1) for seed in range(2000)]
    np.testing.assert_allclose(np.mean(draws, axis=0), 7 * weights / weights.sum(), atol=0.05)
    assert len({tuple(draw) for draw in draws}) > 3


def test_what_is_full_passes_on_what_is_left_in_proportion():
    out = allocate(np.array([8.0, 1.0, 1.0]), np.arange(3), 12, seed=0, round=0, most_E=np.array([2, 9, 9]))
    assert out.tolist() == [2, 5, 5]


def test_allocation_differs_between_rounds_and_seeds():
    draw = lambda seed, round: tuple(allocate(np.ones(50), np.arange(50), 20, seed=seed, round=round))
    assert len({draw(s, r) for s in range(3) for r in range(3)}) == 9
    assert selection.allocate(np.ones(50), np.arange(50), 50, seed=0, round=0).tolist() == [1] * 50
