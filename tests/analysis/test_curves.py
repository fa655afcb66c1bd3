import math

import numpy as np
import pytest

from premem_jax.analysis import curves, threshold, trace
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
    of_threshold = {"pre_memorization_accuracy", "fraction_memorized", "threshold"}
    of_train = {"train_nll", "train_accuracy"} | of_threshold
    everything = curves.run_curves(trace.read_trace(tmp_path / "whole"), chosen)
    assert all(np.isfinite(values).all() for values in everything.values())
    for split, rule, absent in (
        ("train", chosen, {"test_accuracy"}),
        ("test", chosen, of_train),
        ("train", None, {"test_accuracy"} | of_threshold),
    ):
        folder = tmp_path / f"{split}-{rule is None}"
        trace.write_evaluation(folder, 1, 1, {split: whole[split]})
        got = curves.run_curves(trace.read_trace(folder), rule)
        assert {name for name, values in got.items() if np.isnan(values).all()} == absent
        for name in got.keys() - absent:
            np.testing.assert_array_equal(got[name], everything[name], err_msg=name)
