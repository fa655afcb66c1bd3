import math

import numpy as np
import pytest
from hypothesis import given

from premem_jax.analysis import premem
from premem_jax.errors import UserError
from tests.analysis.traces import RELEASED, released_run, runs


def slow_pre_memorization_accuracy(accuracy, nll, perplexity):
    """The definition of Kang et al. for one example, word by word."""
    out = []
    for m in range(len(accuracy)):
        if math.isnan(accuracy[m]) or math.isnan(nll[m]):
            out.append(math.nan)
            continue
        best = 0.0
        for k in range(m + 1):
            if not math.isnan(accuracy[k]) and not math.isnan(nll[k]) and not nll[k] < math.log(perplexity):
                best = max(best, accuracy[k])
        out.append(min(accuracy[m], best))
    return out


@given(runs())
def test_pre_memorization_accuracy_is_the_definition(run):
    accuracy_ME, nll_ME, perplexity = run
    expected = [
        slow_pre_memorization_accuracy(list(a), list(n), perplexity)
        for a, n in zip(accuracy_ME.T, nll_ME.T, strict=True)
    ]
    got = premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)
    np.testing.assert_array_equal(got, np.array(expected).T)


@given(runs())
def test_masked_accuracy_and_fraction_memorized_are_the_definition(run):
    accuracy_ME, nll_ME, perplexity = run
    masked_ME = premem.masked_accuracy(accuracy_ME, nll_ME, perplexity)
    fraction_M = premem.fraction_memorized(nll_ME, perplexity)
    for m in range(len(nll_ME)):
        known = [x for x in nll_ME[m] if not math.isnan(x)]
        memorized = sum(x < math.log(perplexity) for x in known)
        np.testing.assert_equal(fraction_M[m], memorized / len(known) if known else math.nan)
        for e in range(nll_ME.shape[1]):
            a, x = accuracy_ME[m, e], nll_ME[m, e]
            expected = math.nan if math.isnan(a) or math.isnan(x) else 0.0 if x < math.log(perplexity) else a
            np.testing.assert_equal(masked_ME[m, e], expected)


def test_a_tie_is_not_memorized():
    nll = np.array([[math.log(1.5)]])
    assert premem.masked_accuracy(np.array([[0.4]]), nll, 1.5) == 0.4
    assert premem.fraction_memorized(nll, 1.5) == 0


def test_an_unmeasured_evaluation_is_unknown_and_forgotten():
    accuracy = np.array([[0.2], [0.8], [1.0]])
    nll = np.array([[0.9], [np.nan], [0.0]])
    np.testing.assert_array_equal(premem.pre_memorization_accuracy(accuracy, nll, 1.5), [[0.2], [np.nan], [0.2]])


@pytest.mark.parametrize("perplexity", [0.9, math.nan, math.inf, -1])
def test_a_senseless_threshold_is_refused(perplexity):
    with pytest.raises(UserError, match="at least 1"):
        premem.fraction_memorized(np.zeros((1, 1)), perplexity)


def test_first_memorized_is_the_first_evaluation_below_the_threshold():
    tie = math.log(1.35)
    nll_ME = np.array([[0.5, 0.1, 0.5, np.nan, tie], [0.1, 0.5, 0.5, np.nan, tie], [0.1, 0.1, 0.4, 0.2, tie]])
    np.testing.assert_array_equal(premem.first_memorized(nll_ME, 1.35), [1, 0, 3, 2, 3])


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_gsm8k_runs_come_out_as_published(name):
    run = released_run(name)
    trained = run["trained"]
    premem_ME = premem.pre_memorization_accuracy(
        run["train_accuracy"][:, trained], run["train_nll"][:, trained], math.exp(math.exp(-2.3))
    )
    got = [run["train_accuracy"][:, trained].mean(1), premem.measured_mean(premem_ME), run["test_accuracy"].mean(1)]
    expected = np.array([[float(x) for x in triple.split("/")] for triple in RELEASED[name].split()])
    np.testing.assert_allclose(np.stack(got, axis=1), expected, rtol=0, atol=0.5001e-4)


@given(runs())
def test_settled_means_that_no_accuracy_could_change_the_value(run):
    """Where even the accuracy 1 at an evaluation gives the value 0, and nowhere else."""
    accuracy_ME, nll_ME, perplexity = run
    settled_ME = premem.settled(accuracy_ME, nll_ME, perplexity)
    for m in range(len(accuracy_ME)):
        tried = np.array(accuracy_ME, np.float64)
        tried[m] = 1
        value_E = premem.pre_memorization_accuracy(tried, nll_ME, perplexity)[m]
        np.testing.assert_array_equal(settled_ME[m], value_E == 0)
    assert np.all(premem.settled(accuracy_ME, nll_ME, 2 * perplexity) >= settled_ME)
