import math

import numpy as np
import pytest
from scipy import stats

from premem_jax.analysis import curves, estimate, premem, threshold, trace
from tests.analysis.traces import released_run, synthetic_splits


def test_curves_of_a_released_run_through_a_trace(tmp_path):
    """A run that goes through the Parquet files (float32) comes out as from the release's float64 arrays."""
    run = released_run("6ep half lr2e-05")
    trained = np.flatnonzero(run["trained"])
    for m, step in enumerate(run["step"]):
        counts = {name: run[f"train_{name}"][m, trained] for name in ("samples", "correct")}
        train = {"example": trained, "target_nll": run["train_nll"][m, trained], **counts}
        test = {"example": np.arange(1319), "samples": run["test_samples"][m], "correct": run["test_correct"][m]}
        trace.write_evaluation(tmp_path, int(step), m + 1, {"train": train, "test": test})
    got = curves.run_curves(trace.read_trace(tmp_path), threshold.given(math.exp(math.exp(-2.3))))
    np.testing.assert_array_equal(got["step"], run["step"])
    np.testing.assert_array_equal(got["epoch"], range(1, 7))
    # a separate script over the release
    rows = {
        "train_accuracy": [0.3891, 0.5675, 0.8128, 0.9368, 0.9854, 0.9981],
        "pre_memorization_accuracy": [0.3756, 0.4756, 0.5086, 0.5264, 0.5358, 0.5379],
        "test_accuracy": [0.3336, 0.4161, 0.4884, 0.4863, 0.5072, 0.5069],
    }
    for name, expected in rows.items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=0.5001e-4)
    assert got["train_nll"][-1] == pytest.approx(0.0007, abs=0.5e-4)
    below = run["train_nll"][:, trained] < math.exp(-2.3)
    np.testing.assert_allclose(got["fraction_memorized"], below.mean(axis=1), atol=1e-3)


def test_what_was_not_measured_is_nan(tmp_path):
    for step in (1, 2):
        splits = synthetic_splits(0, step, examples=60)
        if step == 2:
            del splits["test"], splits["train"]["target_nll"]
        trace.write_evaluation(tmp_path, step, step, splits)
    got = curves.run_curves(trace.read_trace(tmp_path), threshold.given(1.2))
    for name in ("train_nll", "pre_memorization_accuracy", "test_accuracy", "fraction_memorized"):
        np.testing.assert_array_equal(np.isnan(got[name]), [False, True], err_msg=name)
    assert not np.isnan(got["train_accuracy"]).any()


def test_a_trace_that_lacks_a_split_or_a_threshold_has_the_other_curves(tmp_path):
    """Each curve is there exactly where what it is made of is, with the values that the whole trace gives."""
    whole, chosen = synthetic_splits(0, 1, examples=60), threshold.given(1.2)
    trace.write_evaluation(tmp_path / "whole", 1, 1, whole)
    of_metric = {"pre_memorization_accuracy", "estimate"}
    of_threshold = {"fraction_memorized", "threshold"} | of_metric | {f"{name}_error" for name in of_metric}
    of_train, of_test = {"train_nll", "train_accuracy"} | of_threshold, {"test_accuracy", "test_accuracy_error"}
    everything = curves.run_curves(trace.read_trace(tmp_path / "whole"), chosen)
    assert all(np.isfinite(values).all() for values in everything.values())
    for split, rule, absent in (
        ("train", chosen, of_test),
        ("test", chosen, of_train),
        ("train", None, of_test | of_threshold),
    ):
        folder = tmp_path / f"{split}-{rule is None}"
        trace.write_evaluation(folder, 1, 1, {split: whole[split]})
        got = curves.run_curves(trace.read_trace(folder), rule)
        assert {name for name, values in got.items() if np.isnan(values).all()} == absent
        for name in got.keys() - absent:
            np.testing.assert_array_equal(got[name], everything[name], err_msg=name)


@pytest.mark.parametrize("examples", [60, 1])
def test_errors_are_those_of_means_over_examples(tmp_path, examples):
    for step in (1, 2, 3):
        trace.write_evaluation(tmp_path, step, step, synthetic_splits(0, step, examples=examples))
    read = trace.read_trace(tmp_path)
    got, train = curves.run_curves(read, threshold.given(1.2)), read.split("train")
    values_ME = premem.pre_memorization_accuracy(train.accuracy, train.nll, 1.2)
    for name, of in (("estimate", values_ME), ("pre_memorization_accuracy", values_ME), ("test_accuracy", None)):
        of = read.split("test").accuracy if of is None else of
        expected = stats.sem(of, axis=1) if examples > 1 else np.full(3, np.nan)
        np.testing.assert_allclose(got[f"{name}_error"], expected)
    np.testing.assert_allclose(got["estimate"], estimate.of_split(train, 1.2).mean(axis=1))


def test_an_interval_stays_within_accuracies():
    assert curves.interval(0.5, 0.1) == pytest.approx((0.304, 0.696))
    assert curves.interval(0.01, 0.1)[0] == 0 and curves.interval(0.95, 0.1)[1] == 1
