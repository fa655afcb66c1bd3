"""Average thresholded confidence against its words."""

import numpy as np
import pytest

from premem_jax.analysis import study, thresholded_confidence
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import given
from premem_jax.analysis.trace import SplitTrace, Trace

EXAMPLES = 400


def run_of(seed: int, test, measured=(True, True, True)) -> Run:
    """Three evaluations; the examples get surer from one to the next."""
    rng = np.random.default_rng(seed)
    sure_ME = -rng.exponential(np.array([[4.0], [2.0], [1.0]]), (3, EXAMPLES))
    sure_ME[~np.array(measured)] = np.nan
    some = np.full((3, EXAMPLES), 4)
    split = SplitTrace(np.arange(EXAMPLES), 0.1 - sure_ME, 0 * some[0], some, some // 2, 0 * some, 0, 0, sure_ME)
    trace = Trace(np.arange(1, 4), np.arange(1.0, 4.0), {"train": split})
    return Run(f"run {seed}", "task", trace, np.array(test, np.float64))


def test_a_run_is_measured_by_the_thresholds_of_the_others():
    runs = [run_of(0, [0.2, 0.3, 0.4]), run_of(1, [0.1, 0.6, np.nan]), run_of(2, [0.5, 0.5, 0.7], (True, True, False))]
    last = (2, 1, 1)  # the last evaluation at which both are known
    own = []
    for run, m in zip(runs, last, strict=True):
        ordered = sorted(run.train.log_confidence[m])
        own.append(thresholded_confidence.own_threshold(run))
        above = sum(value > own[-1] for value in ordered)
        assert abs(above - EXAMPLES * run.test_accuracy[m]) <= 1
    got = thresholded_confidence.average_thresholded_confidence(runs)
    for i, run in enumerate(runs):
        threshold = np.mean([own[j] for j in range(3) if j != i])  # the median of two
        for m in range(3):
            values = run.train.log_confidence[m]
            expected = np.mean(values > threshold) if np.isfinite(values).all() else np.nan
            assert got[i][m] == pytest.approx(expected, nan_ok=True)


def test_its_own_test_accuracy_does_not_move_a_run():
    a, b = run_of(0, [0.2, 0.3, 0.4]), run_of(1, [0.1, 0.6, 0.5])
    other = run_of(0, [0.9, 0.9, 0.9])
    first, second = (thresholded_confidence.average_thresholded_confidence([one, b])[0] for one in (a, other))
    np.testing.assert_array_equal(first, second)
    assert np.isnan(thresholded_confidence.average_thresholded_confidence([a])[0]).all()


def test_the_study_shows_it():
    runs = [run_of(seed, [0.2, 0.3, 0.4]) for seed in range(3)]
    row = study.predictor_table(runs, [given(1.1)] * 3, draws=10, seed=0)["average_thresholded_confidence"]
    assert row["n_points"] == 9 and row["r2_identity"] is not None
    assert len(study.run_table(runs, [given(1.1)] * 3)[0]["average_thresholded_confidence"]) == 3
