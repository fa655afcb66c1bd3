"""Estimates of the pre-memorization accuracy of single examples, against enumeration and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import betabinom

from premem_jax.analysis import estimate, premem
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


def accuracy(correct, samples):
    return np.where(samples > 0, correct / np.maximum(samples, 1), np.nan)


@settings(deadline=None)
@given(traces(most=10, evaluations=6, examples=20))
def test_the_published_value_is_that_of_the_metric(trace):
    correct, samples, nll = trace
    mine = estimate.published(accuracy(correct, samples), nll, P)
    np.testing.assert_array_equal(mine, premem.pre_memorization_accuracy(accuracy(correct, samples), nll, P)[-1])


@settings(deadline=None)
@given(traces(most=10, evaluations=6))
def test_keeping_all_samples_changes_nothing(trace):
    correct, samples, nll = trace
    R = samples.max()
    if R:
        mine = estimate.kept(correct, samples, nll, P, R)
        np.testing.assert_allclose(mine, estimate.published(accuracy(correct, samples), nll, P), atol=1e-12)


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
        values = [estimate.published(np.array(way)[:, None], column, P)[0] for way in itertools.product(*ways)]
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
    raw, mine = estimate.published(accuracy(correct, samples), nll, P), estimate.shrunk(correct, samples, nll, P)
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


def test_of_few_samples_the_shrunk_value_is_nearly_unbiased():
    """Accuracies of fifty samples of a real run are taken for the truth, and five samples are drawn from them."""
    real, rng, perplexity = released_run("3ep full lr2e-05"), np.random.default_rng(1), np.exp(0.1003)
    assert real["train_samples"].min() == 50
    of_shrunk, of_published = [], []
    for _ in range(20):
        some = rng.choice(real["train_nll"].shape[1], 500, replace=False)
        chance, nll = real["train_accuracy"][:, some], real["train_nll"][:, some]
        truth = estimate.published(chance, nll, perplexity).mean()
        correct, samples = rng.binomial(5, chance), np.full(chance.shape, 5)
        of_shrunk.append(estimate.shrunk(correct, samples, nll, perplexity).mean() - truth)
        of_published.append(estimate.published(correct / 5, nll, perplexity).mean() - truth)
    assert abs(np.mean(of_shrunk)) < 0.002 < np.mean(of_published)
