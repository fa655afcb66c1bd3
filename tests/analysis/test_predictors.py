import math

import numpy as np
import pytest
from hypothesis import given

from premem_jax.analysis import predictors
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import SplitTrace, Trace
from tests.analysis.traces import runs


def run_of(accuracy_ME, nll_ME, steps=None, **fields) -> Run:
    """A run whose accuracies are fifths."""
    samples = np.where(np.isnan(accuracy_ME), 0, 5)
    correct = np.rint(np.nan_to_num(accuracy_ME) * 5).astype(int)
    examples = accuracy_ME.shape[1]
    split = SplitTrace(np.arange(examples), nll_ME, np.zeros(examples, int), samples, correct, 0 * correct)
    steps = np.arange(1, 1 + len(accuracy_ME)) if steps is None else np.array(steps)
    trace = Trace(steps, steps.astype(float), {"train": split})
    return Run("run", "task", trace, np.full(len(steps), np.nan), **fields)


def slow(accuracy, nll, perplexity):
    """Every predictor of one example at each evaluation, from its words."""
    out = []
    best, before, crossed = 0.0, 0.0, False
    for a, x in zip(accuracy, nll, strict=True):
        if math.isnan(a) or math.isnan(x):
            out.append((math.nan,) * 4)
            continue
        memorized = x < math.log(perplexity)
        masked = 0.0 if memorized else a
        best = max(best, masked)
        crossed = crossed or memorized
        if not crossed:
            before = a
        out.append((min(a, best), best, masked, min(a, before)))
    return out


@given(runs())
def test_predictors_are_their_definitions(given_run):
    accuracy_ME, nll_ME, perplexity = given_run
    accuracy_ME = np.rint(accuracy_ME * 5) / 5
    got = predictors.evaluate(run_of(accuracy_ME, nll_ME), perplexity)
    examples = [slow(list(a), list(n), perplexity) for a, n in zip(accuracy_ME.T, nll_ME.T, strict=True)]
    names = ("pre_memorization_accuracy", "without_minimum", "masked_accuracy", "accuracy_before_memorization")
    for m in range(len(accuracy_ME)):
        for at, name in enumerate(names):
            known = [example[m][at] for example in examples if not math.isnan(example[m][at])]
            expected = sum(known) / len(known) if known else math.nan
            np.testing.assert_allclose(got[name][m], expected, atol=1e-12, err_msg=name)
        for name, values in (("train_accuracy", accuracy_ME[m]), ("train_nll", nll_ME[m])):
            known = [v for v in values if not math.isnan(v)]
            np.testing.assert_allclose(got[name][m], sum(known) / len(known) if known else math.nan, atol=1e-12)
        known = [math.exp(v) for v in nll_ME[m] if not math.isnan(v)]
        expected = sum(known) / len(known) if known else math.nan
        np.testing.assert_allclose(got["train_perplexity"][m], expected, atol=1e-12)


def test_the_first_accuracy_is_after_training_began():
    accuracy = np.array([[0.2, 0.0], [np.nan, np.nan], [0.4, 0.8], [1.0, 1.0]])
    got = predictors.evaluate(run_of(accuracy, np.ones((4, 2)), steps=[0, 5, 10, 20]), 1.1)
    np.testing.assert_allclose(got["first_accuracy"], [0.6] * 4)
    np.testing.assert_allclose(got["log_train_examples"], [math.log(2)] * 4)


def test_a_threshold_per_evaluation_is_used_at_its_evaluation():
    accuracy, nll = np.full((3, 1), 0.6), np.full((3, 1), 0.5)
    got = predictors.evaluate(run_of(accuracy, nll), np.exp([0.6, 0.6, 0.4]))
    np.testing.assert_allclose(got["masked_accuracy"], [0, 0, 0.6])
    np.testing.assert_allclose(got["pre_memorization_accuracy"], [0, 0, 0.6])
    np.testing.assert_allclose(got["fraction_memorized"], [1, 1, 0])


def test_measured_predictors_come_along():
    measured = {"gradient_variance": np.array([3.0, 2.0])}
    got = predictors.evaluate(run_of(np.full((2, 1), 0.4), np.ones((2, 1)), measures=measured), 1.1)
    np.testing.assert_array_equal(got["gradient_variance"], [3, 2])
    kind = predictors.of("gradient_variance")
    assert kind.title == "gradient variance" and not kind.is_accuracy
    assert predictors.of("average_thresholded_confidence").is_accuracy


MEASURED = ("average_thresholded_confidence", "gradient_variance", "distance_from_initialization")


@pytest.mark.parametrize("name", [name for name in predictors.PREDICTORS if name not in MEASURED])
def test_only_predictors_in_units_of_accuracy_stay_between_0_and_1(name):
    accuracy = np.array([[0.2, 1.0, 0.8], [1.0, 1.0, 1.0]])
    values = predictors.evaluate(run_of(accuracy, np.array([[2.0, 2.0, 0.1], [1.5, 0.0, 0.1]])), 1.2)[name]
    assert np.all((values >= 0) & (values <= 1)) or not predictors.of(name).is_accuracy
