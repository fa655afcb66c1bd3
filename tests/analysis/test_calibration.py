"""Rules for the threshold: against loops on made-up runs, and against what is known of the released ones."""

import math

import numpy as np
import pytest
from scipy import stats

from premem_jax.analysis import agreement, calibration, premem, study
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import SplitTrace, Trace
from premem_jax.errors import UserError
from tests.analysis.traces import FOLDER, synthetic_splits
from tests.shared import shared

Q = 0.02


def made_up(seed: int, evaluations=3, examples=150, heldout=80, name=None) -> Run:
    """A run whose examples get memorized; its test accuracy is that of examples with the same skill, plus noise."""
    rng = np.random.default_rng(seed)
    trains = [synthetic_splits(seed, m, examples=examples)["train"] for m in range(1, 1 + evaluations)]
    nll, samples, correct = (np.stack([t[key] for t in trains]) for key in ("target_nll", "samples", "correct"))
    ids = np.arange(examples)
    splits = {"train": SplitTrace(ids, nll, 0 * ids, samples, correct, 0 * correct)}
    if heldout:
        values = rng.gamma(4, 0.2, (evaluations, heldout)) + rng.uniform(0, 0.3, (evaluations, 1))
        none = np.zeros(values.shape, int)
        splits["heldout"] = SplitTrace(np.arange(heldout), values, np.zeros(heldout, int), none, none, none)
    steps = np.arange(1, 1 + evaluations)
    true = premem.measured_mean(premem.pre_memorization_accuracy(correct / samples, nll, math.exp(0.15)))
    test = true + rng.normal(0, 0.02, evaluations)
    return Run(name or f"run{seed}", "made up", Trace(steps, steps / 2, splits), test)


@pytest.fixture(scope="module")
def runs():
    return [made_up(0), made_up(1, evaluations=4), made_up(2, heldout=0), made_up(3, evaluations=2)]


def own(values) -> float:
    return math.exp(np.quantile(values, Q))


def test_one_threshold_comes_from_the_lowest_mean_of_all(runs):
    rows = [row for run in runs if run.heldout_nll is not None for row in run.heldout_nll]
    best = min(rows, key=lambda row: row.mean())
    assert calibration.reference_run(runs, Q) == pytest.approx([own(best)] * 4)
    roots = [x ** (1 / 3) for x in best]
    deviation = math.sqrt(sum((r - sum(roots) / 80) ** 2 for r in roots) / 80)
    fitted = (sum(roots) / 80 - 2.0537489106318225 * deviation) ** 3  # the normal 2 % point
    assert calibration.heldout_fit(runs, Q) == pytest.approx([math.exp(fitted)] * 4)


def test_rules_of_single_runs_are_their_loops(runs):
    each, so_far, every = [], [], []
    for run in runs:
        if run.heldout_nll is None:
            each, so_far, every = [*each, None], [*so_far, None], [*every, None]
            continue
        rows = list(run.heldout_nll)
        each.append(own(min(rows, key=lambda row: row.mean())))
        so_far.append([own(min(rows[: m + 1], key=lambda row: row.mean())) for m in range(len(rows))])
        every.append([own(row) for row in rows])
    assert calibration.each_run(runs, Q) == each
    known = [p for p in each if p is not None]
    assert calibration.median_over_runs(runs, Q) == [sorted(known)[1]] * 4
    for rule, expected in ((calibration.lowest_so_far, so_far), (calibration.each_evaluation, every)):
        for got, want in zip(rule(runs, Q), expected, strict=True):
            assert (got is None) if want is None else got.tolist() == want


def test_an_evaluation_without_held_out_values_keeps_the_threshold_before_it():
    run = made_up(1, evaluations=4)
    run.heldout_nll[[0, 3]] = np.nan
    second, third = map(own, run.heldout_nll[1:3])
    [got] = calibration.each_evaluation([run], Q)
    assert second != third and got.tolist() == [second, second, third, third]


def test_the_fraction_of_the_first_epoch_takes_the_lowest_median(runs):
    """Evaluations are at epochs 0.5, 1.0, 1.5: the one at 1.0 counts; a run that starts later has none."""
    medians = [np.median(run.train.nll[1]) for run in runs]
    assert calibration.first_epoch_fraction(runs, 0.5) == pytest.approx([math.exp(0.5 * min(medians))] * 4)
    late = Run("late", "made up", Trace(np.array([4]), np.array([2.0]), made_up(0, 1).trace.splits), np.array([0.1]))
    assert calibration.first_epoch_fraction([late]) == [None]


def test_sensitivity_and_tuning_are_a_search_over_the_grid(runs):
    sensitivity = calibration.Sensitivity(runs)
    r2 = []
    for nll in calibration.GRID:
        p = calibration.points(runs, [math.exp(nll)] * 4)
        r2.append(agreement.r2_identity(p.x, p.y))
    np.testing.assert_allclose(sensitivity.r2(), r2)
    nll, best = sensitivity.tuned()
    assert best == max(r2) > 0.5 and nll == calibration.GRID[r2.index(max(r2))]
    p, chosen = sensitivity.tuned_on_other_runs()
    for run in range(4):
        others = [other for at, other in enumerate(runs) if at != run]
        alone, _ = calibration.Sensitivity(others).tuned()
        assert chosen[run] == alone
        at = calibration.points([runs[run]], [math.exp(alone)])
        np.testing.assert_array_equal(p.x[p.run == run], at.x)


def test_the_grid_holds_the_published_thresholds():
    for tau in (-2.3, -2.4, -2.5, -1.7):
        assert np.abs(np.log(calibration.GRID) - tau).min() < 1e-12


def test_the_error_of_a_quantile_is_that_of_theory():
    """The median of a uniform sample of n has standard error 1 / (2 sqrt(n))."""
    values = np.random.default_rng(0).uniform(0, 1, 100_000)
    drawn = calibration.quantile_error(values, 0.5, 400, draws=2000, seed=0)
    assert drawn.std() == pytest.approx(1 / 40, rel=0.06) and drawn.mean() == pytest.approx(0.5, abs=3e-3)


def test_a_fitted_quantile_is_close_for_a_gamma_variable_and_surer():
    rng = np.random.default_rng(0)
    law = stats.gamma(4, scale=0.13)
    drawn = np.array([rng.choice(law.rvs(300, random_state=rng), 300) for _ in range(300)])
    fitted = np.array([calibration.fitted_quantile(row, 0.01) for row in drawn])
    plain = np.quantile(drawn, 0.01, axis=1)
    assert fitted.mean() == pytest.approx(law.ppf(0.01), rel=0.05)
    assert fitted.std() < 0.75 * plain.std()


def test_which_threshold_is_chosen(runs):
    assert study.choose(runs, "given", Q, 1.3).perplexity == 1.3
    expected = calibration.reference_run(runs, Q)[0]
    for rule in ("heldout_quantile", "published"):  # nobody published these runs
        chosen = study.choose([runs[2], *runs], rule, Q, 0.0)  # the first has nothing held out
        assert chosen.perplexity == pytest.approx(expected)
        lowest = {run.name: run.heldout_nll.mean(axis=1).min() for run in runs if run.heldout_nll is not None}
        assert chosen.detail["run"] == min(lowest, key=lowest.get)
    with pytest.raises(UserError, match="no run has held-out examples"):
        study.choose([runs[2]], "heldout_quantile", Q, 0.0)
    with pytest.raises(UserError, match="'tuned'"):
        study.choose(runs, "tuned", Q, 0.0)


def test_rules_that_the_runs_cannot_feed_are_left_out(runs):
    few = [runs[2], made_up(5, heldout=40)]
    rows = study.threshold_table(few, study.choose(few, "given", Q, 1.2), calibration.Sensitivity(few))
    assert [row["rule"] for row in rows] == ["given", "first_epoch_fraction", "tuned", "tuned_on_other_runs"]
    assert study.heldout_error(few, Q, calibration.Sensitivity(few), 5, 0) == []


# ---- The released runs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    return read_runs(shared(FOLDER))


def test_held_out_quantiles_of_the_released_runs(released):
    """facts/threshold.md: 0.123, 0.100 of the half run and 0.124, 0.101 of the quarter run, first two checkpoints."""
    every = calibration.each_evaluation(released, 0.01)
    found = {run.name.split("_")[3]: np.log(p[:2]) for run, p in zip(released, every, strict=True) if p is not None}
    assert found.keys() == {"half", "quarter"}
    np.testing.assert_allclose(found["half"], [0.123, 0.100], atol=0.6e-3)
    np.testing.assert_allclose(found["quarter"], [0.124, 0.101], atol=0.6e-3)
    assert np.log(calibration.reference_run(released, 0.01)[0]) == pytest.approx(0.100, abs=0.6e-3)


def test_the_fraction_of_the_first_epoch_on_the_released_runs(released):
    p = calibration.points(released, calibration.first_epoch_fraction(released))
    assert agreement.r2_identity(p.x, p.y) == pytest.approx(0.934, abs=1e-3)  # facts/threshold.md


def test_the_sensitivity_of_the_released_runs_is_known():
    """facts/premem.md, section 7c, in release order of files: tau, R² of y = x, R² of a line."""
    runs = read_runs(shared(FOLDER), test_samples="fewest")
    table = """-3.0 0.391 0.871   -2.7 0.735 0.931   -2.5 0.886 0.949   -2.4 0.924 0.948   -2.3 0.935 0.939
               -2.2 0.912 0.921   -2.1 0.848 0.890   -2.0 0.727 0.840   -1.9 0.567 0.783   -1.8 0.360 0.717
               -1.7 0.084 0.641   -1.6 -0.279 0.557  -1.5 -0.698 0.472  -1.0 -3.47 0.171"""
    rows = np.array(table.split(), float).reshape(-1, 3)
    sensitivity = calibration.Sensitivity(runs)
    at = [int(np.argmin(np.abs(np.log(sensitivity.nll) - tau))) for tau in rows[:, 0]]
    assert np.all(np.abs(sensitivity.r2()[at] - rows[:, 1]) < np.where(rows[:, 1] < -3, 6e-3, 0.6e-3))
    np.testing.assert_allclose(sensitivity.r2(agreement.r2_linear)[at], rows[:, 2], atol=0.6e-3)
    assert math.log(sensitivity.tuned()[0]) == pytest.approx(-2.3)
