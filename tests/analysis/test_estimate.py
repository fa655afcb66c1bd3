"""Estimates of the pre-memorization accuracy of single examples, against enumeration and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import betabinom

from benchmarks.estimates import simulated
from premem_jax.analysis import estimate, premem
from premem_jax.analysis.trace import SplitTrace
from tests.analysis.traces import released_run

P = 1.2
MEMORIZED, NOT = np.log(P) - 0.05, np.log(P) + 0.05


@st.composite
def traces(draw, most=4, evaluations=3, examples=6):
    """Counts (M, E), samples, and NLLs on both sides of the threshold, a few of them unknown."""
    shape = draw(st.integers(1, evaluations)), draw(st.integers(1, examples))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples = np.full(shape, draw(st.integers(1, most)))
    nll = rng.choice([MEMORIZED, NOT, np.log(P), np.nan], shape, p=[0.4, 0.4, 0.1, 0.1])
    samples[rng.random(shape) < 0.1] = 0
    return rng.binomial(samples, rng.random(shape[1])), samples, nll


def published(accuracy_ME, nll_ME, perplexity=P):
    return premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)[-1]


def accuracy(correct, samples):
    return np.where(samples > 0, correct / np.maximum(samples, 1), np.nan)


@settings(deadline=None)
@given(traces(most=10, evaluations=6))
def test_keeping_all_samples_changes_nothing(trace):
    correct, samples, nll = trace
    R = samples.max()
    if R:
        mine = estimate.kept(correct, samples, nll, P, R)
        np.testing.assert_allclose(mine, published(accuracy(correct, samples), nll), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(traces(most=4), st.integers(1, 4))
def test_keeping_some_is_the_mean_over_all_ways_to_keep_them(trace, r):
    correct, samples, nll = trace
    R = samples.max()
    if r > R:
        return
    expected = []
    for e in range(correct.shape[1]):
        ways = []
        for c, n in zip(correct[:, e], samples[:, e], strict=True):
            verdicts = [1] * c + [0] * (n - c)
            ways.append([np.mean(kept) for kept in itertools.combinations(verdicts, r)] if n else [np.nan])
        column = nll[:, e : e + 1]
        values = [published(np.array(way)[:, None], column)[0] for way in itertools.product(*ways)]
        expected.append(np.mean(values))
    np.testing.assert_allclose(estimate.kept(correct, samples, nll, P, r), expected, atol=1e-12)


def test_more_samples_than_there_are_cannot_be_kept():
    one = np.ones((1, 1), int)
    with pytest.raises(ValueError, match="2 samples cannot be kept of 1"):
        estimate.kept(one, one, np.full((1, 1), NOT), P, 2)


@settings(deadline=None)
@given(traces(most=10, evaluations=6, examples=20))
def test_what_is_not_memorized_keeps_its_value_and_the_rest_stays_an_accuracy(trace):
    correct, samples, nll = trace
    raw, mine = published(accuracy(correct, samples), nll), estimate.shrunk(correct, samples, nll, P)[-1]
    np.testing.assert_array_equal(np.isnan(raw), np.isnan(mine))
    unmemorized = ~(nll[-1] < np.log(P))
    np.testing.assert_array_equal(raw[unmemorized], mine[unmemorized])
    assert np.all((mine[~np.isnan(mine)] >= 0) & (mine[~np.isnan(mine)] <= 1))
    never = np.all((nll < np.log(P)) | np.isnan(nll), axis=0) & ~np.isnan(mine)
    assert not mine[never].any()


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 8))
def test_shrinking_keeps_the_mean_and_the_order_of_a_group(seed, samples):
    rng = np.random.default_rng(seed)
    correct = rng.binomial(samples, rng.beta(1, 2, 30))[None]
    smooth = estimate.shrunk_accuracy(correct, np.full((1, 30), samples), np.zeros((1, 30), bool))
    assert smooth.mean() == pytest.approx(correct.mean() / samples)
    assert np.all(np.diff(smooth[0, np.argsort(correct[0], kind="stable")]) >= -1e-12)
    assert smooth.var() <= (correct / samples).var() + 1e-12


def test_the_prior_fitted_by_moments_is_nearly_the_likeliest_one():
    rng = np.random.default_rng(0)
    correct = rng.binomial(5, rng.beta(2, 3, 4000))
    loss = lambda log_ab: -betabinom.logpmf(correct, 5, *np.exp(log_ab)).sum()
    a, b = np.exp(minimize(loss, [0.0, 0.0], method="Nelder-Mead").x)
    smooth = estimate.shrunk_accuracy(correct[None], np.full((1, 4000), 5), np.zeros((1, 4000), bool))[0]
    np.testing.assert_allclose(smooth, (correct + a) / (5 + a + b), atol=0.01)


@settings(deadline=None)
@given(traces(most=6, evaluations=5, examples=20))
def test_every_evaluation_has_the_value_that_a_run_until_there_has(trace):
    correct, samples, nll = trace
    whole = estimate.shrunk(correct, samples, nll, P)
    for m in range(1, 1 + len(nll)):
        until = estimate.shrunk(correct[:m], samples[:m], nll[:m], P)
        np.testing.assert_array_equal(whole[:m], until)


def test_what_was_skipped_keeps_the_value_before():
    """Zero as published; shrunk, what its group makes of no right sample in four."""
    correct, samples = np.array([[2, 0], [4, 0]]), np.array([[4, 4], [4, 0]])
    nll, ids = np.array([[NOT, NOT], [NOT, MEMORIZED]]), np.arange(2)
    split = SplitTrace(ids, nll, ids, samples, correct, 0 * correct, skipped=np.array([[0, 0], [0, 4]]))
    before = estimate.shrunk_accuracy(correct, samples, nll < np.log(P))[0, 1]
    assert estimate.of_split(split, P)[-1].tolist() == [1.0, before] and before > 0
    assert estimate.extrapolation(split, P) == 0.5


@settings(deadline=None)
@given(traces(most=6, evaluations=4, examples=20))
def test_the_extrapolation_leaves_what_is_not_memorized(trace):
    correct, samples, nll = trace
    if samples.max() < 2:
        return
    found = estimate.extrapolated(correct, samples, nll, P)
    unmemorized = ~(nll[-1] < np.log(P))
    np.testing.assert_allclose(found[unmemorized], published(accuracy(correct, samples), nll)[unmemorized])


def test_the_extrapolation_removes_a_bias_that_falls_with_the_root_of_the_samples():
    """Of examples with one accuracy at six evaluations, half of them memorized at the seventh."""
    rng, samples = np.random.default_rng(0), np.full((7, 4000), 5)
    nll = np.full(samples.shape, NOT)
    nll[-1, ::2] = MEMORIZED
    chance = np.full(samples.shape, 0.5)
    chance[-1, ::2] = 1.0
    correct = rng.binomial(5, chance)
    bias = published(correct / 5, nll).mean() - 0.5
    left = estimate.extrapolated(correct, samples, nll, P).mean() - 0.5
    assert bias > 0.1 and abs(left) < 0.35 * bias
    assert np.isnan(estimate.extrapolation(SplitTrace(np.arange(4000), nll, 0, samples // 5, correct // 5, 0), P))


@pytest.mark.parametrize("until", [2, 3])
def test_of_few_samples_the_shrunk_value_is_nearly_unbiased_and_its_interval_holds(until):
    """Accuracies of fifty samples of a real run are taken for the truth, and five samples are drawn from them.

    `benchmarks/estimates.py` has more replicates, and all such runs.
    """
    real = released_run("3ep full lr2e-05")
    assert real["train_samples"].min() == 50
    chance, nll = real["train_accuracy"][:until], real["train_nll"][:until]
    found = simulated(chance, nll, np.exp(0.1003), R=5, replicates=60, seed=1)
    bias, error, coverage = found["shrunk"]
    assert abs(bias) < 0.007 and error < 0.02 and coverage >= 0.88
    assert abs(found["extrapolated"][0]) < 0.007
