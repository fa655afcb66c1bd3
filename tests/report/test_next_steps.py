"""What a page advises follows from the numbers; each of them turned round takes its advice away."""

import numpy as np
import pytest

from premem_jax.analysis.curves import run_curves
from premem_jax.analysis.threshold import Threshold, given
from premem_jax.analysis.trace import Trace, line_up
from premem_jax.report import next_steps

EXAMPLES = 100


def advice(metric=(0.2, 0.4, 0.5), train=(0.2, 0.4, 0.5), test=0.5, memorized=(0, 0.1, 0.3), samples=10, **changes):
    """Of a run with these shares: a memorized example was solved before as often as the metric says."""
    parts, tests = [], []
    for premem, accuracy, share in zip(metric, train, memorized, strict=True):
        known = np.arange(EXAMPLES) < round(share * EXAMPLES)
        correct = np.full(EXAMPLES, round(accuracy * samples))
        nll = np.where(known, 0.01, 1.0) if premem == accuracy else np.full(EXAMPLES, 0.01)
        parts.append(
            dict(example=np.arange(EXAMPLES), target_nll=nll, correct=correct, samples=np.full(EXAMPLES, samples))
        )
        tests.append(dict(example=np.arange(10), correct=np.full(10, round(test * 10)), samples=np.full(10, 10)))
    epochs = np.arange(1.0, 1 + len(metric))
    splits = {"train": line_up(parts, "train", ""), "test": line_up(tests, "test", "")}
    trace = Trace(np.arange(len(metric)), epochs, splits | changes.pop("splits", {}))
    curves = run_curves(trace, given(1.1))
    curves |= {"estimate": np.array(metric), "fraction_memorized": np.array(memorized)} | changes
    return " ".join(next_steps.of_run(trace, curves, Threshold(1.1, "made up", {"heldout_examples": 5000})))


@pytest.mark.parametrize(
    ("words", "there", "not_there"),
    [
        ("Train longer", {}, dict(metric=(0.2, 0.5, 0.5))),
        ("Stop earlier: after epoch 2", dict(metric=(0.2, 0.5, 0.5)), {}),
        ("30 points of it come after memorization", dict(train=(0.2, 0.4, 0.8)), {}),
        ("off by +30 points", dict(test=0.2), {}),
        ("30% of the examples are memorized at the first evaluation", dict(memorized=(0.3, 0.3, 0.3)), {}),
        ("Draw more than 2 samples", dict(samples=2), {}),
        ("Measure the test accuracy", dict(test_accuracy=np.full(3, np.nan)), {}),
    ],
)
def test_advice_follows_from_the_numbers(words, there, not_there):
    assert words in advice(**there) and words not in advice(**not_there)


def test_what_the_metric_lacks_is_named():
    alone = Trace(np.arange(1), np.ones(1), {})
    curves = run_curves(alone, None)
    [said] = next_steps.of_run(alone, curves, None)
    assert all(words in said for words in ("an accuracy evaluator", "a likelihood evaluator", "a threshold"))


def test_a_study_of_few_runs_and_a_poor_predictor():
    rows = {"pre_memorization_accuracy": {"r2_identity": 0.2}, "train_accuracy": {"r2_identity": 0.6}}
    task = {"runs": 3, "predictors": rows, "threshold_looks_at_test": True}
    few, rule, tuned = next_steps.of_study(task)
    assert "of 3" in few and "train accuracy is nearer" in rule and "heldout_quantile" in tuned
    rows["pre_memorization_accuracy"]["r2_identity"] = 0.9
    [choose] = next_steps.of_study(task | {"runs": 12, "threshold_looks_at_test": False})
    assert "R² 0.90" in choose
