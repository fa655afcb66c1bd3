"""Rules for the threshold: against loops on made-up runs, and against what is known of the released ones."""

import math

import numpy as np
import pytest

from premem_jax.analysis import agreement, calibration, premem, study
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import SplitTrace, Trace
from premem_jax.errors import UserError
from tests.analysis.traces import FOLDER, RELEASED, released_run, synthetic_splits
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


def test_rules_are_their_loops(runs):
    """Of runs 0, 1 and 3; run 2 has nothing held out."""
    every = [[own(row) for row in run.heldout_nll] for run in runs if run.heldout_nll is not None]
    lowest = [min(thresholds) for thresholds in every]
    assert calibration.lowest_quantile(runs, Q) == pytest.approx([*lowest[:2], min(lowest), lowest[2]])
    assert calibration.median_over_runs(runs, Q) == pytest.approx([sorted(lowest)[1]] * 4)
    rows = [row for run in runs if run.heldout_nll is not None for row in run.heldout_nll]
    reference = own(min(rows, key=lambda row: row.mean()))
    assert reference > min(lowest)
    assert calibration.reference_run(runs, Q) == [reference] * 4
    got = calibration.heldout_quantile(runs, Q)
    assert got.pop(2) == reference
    of_median = calibration.heldout_fraction(runs, 0.3)
    assert of_median.pop(2) == pytest.approx(math.exp(0.3 * np.median(min(rows, key=lambda row: row.mean()))))
    for mine, row in zip(of_median, [runs[i].heldout_nll for i in (0, 1, 3)], strict=True):
        np.testing.assert_allclose(np.log(mine), 0.3 * np.median(row, axis=1))
    for one, expected in zip(got, every, strict=True):
        np.testing.assert_allclose(one, expected)


def test_an_evaluation_without_held_out_values_keeps_the_threshold_before_it():
    run = made_up(1, evaluations=4)
    run.heldout_nll[[0, 3]] = np.nan
    second, third = map(own, run.heldout_nll[1:3])
    [got] = calibration.heldout_quantile([run], Q)
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


def test_the_error_of_a_threshold_is_that_of_theory():
    """The median of a uniform sample of n has standard error 1 / (2 sqrt(n)), and two runs draw the same examples."""
    values = np.random.default_rng(0).uniform(0.5, 1.5, (1, 100_000))
    none = np.zeros(values.shape, int)
    held = SplitTrace(np.arange(100_000), values, none[0], none, none, none)
    splits = {"heldout": held, "train": made_up(0, 1).train}
    run = Run("a", "task", Trace(np.array([1]), np.array([1.0]), splits), np.array([0.5]))
    drawn_DM, _ = calibration.redrawn([run, run, made_up(2, heldout=0)], 0.5, 400, draws=500, seed=0)
    assert drawn_DM.shape == (500, 2) and np.all(drawn_DM[:, 0] == drawn_DM[:, 1])
    assert drawn_DM[:, 0].std() == pytest.approx(1 / 40, rel=0.1) and drawn_DM.mean() == pytest.approx(1, abs=4e-3)


@pytest.mark.parametrize("tail", calibration.TAILS)
def test_thresholds_redrawn_from_many_examples_are_those_of_the_rule(tail):
    many = [made_up(0, heldout=3000), made_up(2, heldout=0), made_up(1, evaluations=4, heldout=2000)]
    for run in (many[0], many[2]):
        run.heldout_nll[:] = np.random.default_rng(run.heldout_nll.shape).lognormal(-0.5, 0.3, run.heldout_nll.shape)
    rule = calibration.heldout_quantile(many, Q)
    drawn_DM, r2_D = calibration.redrawn(many, Q, 100_000, draws=2, seed=0, tail=tail)
    np.testing.assert_allclose(drawn_DM[0], np.log(np.concatenate([rule[0], rule[2]])), rtol=0.06)
    p = calibration.points(many, rule)
    np.testing.assert_allclose(r2_D, agreement.r2_identity(p.x, p.y), rtol=0.05)


def test_which_thresholds_are_chosen(runs):
    assert [one.perplexity for one in study.choose(runs, "given", Q, 1.3)] == [1.3] * 4
    for rule in ("heldout_quantile", "published"):  # nobody published these runs
        chosen = study.choose(runs, rule, Q, 0.0)
        for one, expected in zip(chosen, calibration.heldout_quantile(runs, Q), strict=True):
            np.testing.assert_array_equal(one.perplexity, expected)
        assert study.rule_for(runs, rule) == "heldout_quantile"
    with pytest.raises(UserError, match="no run has the target NLL"):
        study.choose([runs[2]], "heldout_quantile", Q, 0.0)
    with pytest.raises(UserError, match="'tuned'"):
        study.choose(runs, "tuned", Q, 0.0)


def test_every_run_is_scored_at_its_own_threshold(runs):
    chosen = study.choose(runs, "heldout_quantile", Q, 0.0)
    assert len({one.at_end for one in chosen}) == 4
    for run, one, row in zip(runs, chosen, study.run_table(runs, chosen), strict=True):
        accuracy_ME = run.train.correct / run.train.samples
        limit_M1 = np.broadcast_to(np.ravel(one.perplexity), len(run.trace.steps))[:, None]
        masked_ME = np.where(np.exp(run.train.nll) >= limit_M1, accuracy_ME, 0)
        expected = np.minimum(np.maximum.accumulate(masked_ME), accuracy_ME).mean(axis=1)
        np.testing.assert_allclose(row["pre_memorization_accuracy"], expected)
        np.testing.assert_allclose(row["fraction_memorized"], (np.exp(run.train.nll) < limit_M1).mean(axis=1))
        assert row["threshold"] == one.at_end == row["thresholds"][-1] and len(row["thresholds"]) == len(limit_M1)
    table = study.predictor_table(runs, chosen, draws=2, seed=0)
    p = calibration.points(runs, calibration.heldout_quantile(runs, Q))
    assert table["pre_memorization_accuracy"]["r2_identity"] == pytest.approx(agreement.r2_identity(p.x, p.y))
    assert table["pre_memorization_accuracy"]["threshold"] == np.median([one.at_end for one in chosen])


def test_rules_that_the_runs_cannot_feed_are_left_out(runs):
    few = [runs[2], made_up(5, heldout=40)]
    rows = study.threshold_table(few, study.choose(few, "given", Q, 1.2), calibration.Sensitivity(few))
    assert [row["rule"] for row in rows] == ["given", "first_epoch_fraction", "tuned", "tuned_on_other_runs"]
    assert study.heldout_error(few, Q, 5, 0) == []


# ---- The released runs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    return read_runs(shared(FOLDER))


def test_held_out_quantiles_of_the_released_runs(released):
    """A separate script: 0.123, 0.100 of the half run and 0.124, 0.101 of the quarter run, first two checkpoints."""
    every = calibration.heldout_quantile(released, 0.01)
    found = {run.name.split("_")[3]: np.log(p[:2]) for run, p in zip(released, every, strict=True) if np.ndim(p)}
    assert found.keys() == {"half", "quarter"}
    np.testing.assert_allclose(found["half"], [0.123, 0.100], atol=0.6e-3)
    np.testing.assert_allclose(found["quarter"], [0.124, 0.101], atol=0.6e-3)
    assert np.log(calibration.reference_run(released, 0.01)[0]) == pytest.approx(0.100, abs=0.6e-3)


def test_the_default_rule_on_the_released_runs():
    """From the files alone: the quantiles of the half and the quarter run; the others take one, of the lowest mean."""
    own, means = {}, {}
    for name in ("6ep half lr2e-05", "12ep quarter lr2e-05"):
        run = released_run(name)
        unseen = run["train_nll"][:, ~run["trained"]]
        own[name] = np.quantile(unseen, 0.01, axis=1)[:, None]
        means |= dict(zip(unseen.mean(axis=1), own[name][:, 0], strict=True))
    x, y = [], []
    for name in RELEASED:
        run = released_run(name)
        nll, accuracy = run["train_nll"][:, run["trained"]], run["train_accuracy"][:, run["trained"]]
        masked = np.where(nll >= own.get(name, means[min(means)]), accuracy, 0)
        x += np.minimum(np.maximum.accumulate(masked), accuracy).mean(axis=1).tolist()
        y += run["test_accuracy"].mean(axis=1).tolist()
    x, y = np.array(x), np.array(y)
    expected = 1 - np.sum((x - y) ** 2) / np.sum((y - y.mean()) ** 2)
    runs = read_runs(shared(FOLDER), test_samples="fewest")
    p = calibration.points(runs, calibration.heldout_quantile(runs, 0.01))
    assert agreement.r2_identity(p.x, p.y) == pytest.approx(expected, abs=1e-6) and len(p.x) == len(x) == 51
    assert calibration.Sensitivity(runs).tuned()[1] - 0.03 < expected


def test_the_fraction_of_the_first_epoch_on_the_released_runs(released):
    p = calibration.points(released, calibration.first_epoch_fraction(released))
    assert agreement.r2_identity(p.x, p.y) == pytest.approx(0.934, abs=1e-3)  # a separate script


def test_the_sensitivity_of_the_released_runs_is_known():
    """A separate script, in release order of files: tau, R² of y = x, R² of a line."""
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
