"""Accuracy by bins of pre-memorization accuracy, on a made-up case and on real traces."""

import math

import numpy as np

from premem_jax.analysis import premem, robustness
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import SplitTrace, Trace
from tests.analysis.traces import FOLDER
from tests.shared import shared

PUBLISHED = math.exp(math.exp(-2.3))


def test_bins_and_their_intervals():
    """Fifths lie in the bins that they begin; the interval is about two standard errors on either side."""
    rng = np.random.default_rng(0)
    premem_E = np.repeat(np.arange(6) / 5, 400)
    accuracy_E = rng.binomial(10, 0.3 + 0.1 * np.repeat(np.arange(6), 400)) / 10
    accuracy_E[:3], premem_E[3:5] = np.nan, np.nan
    rows = robustness.binned(premem_E, accuracy_E, draws=2000, seed=0)
    assert [row["examples"] for row in rows] == [395, 400, 400, 400, 400, 400]
    for i, row in enumerate(rows):
        values = accuracy_E[5:400] if i == 0 else accuracy_E[400 * i : 400 * i + 400]
        assert row["lowest"] == i / 5 and abs(row["accuracy"] - values.mean()) < 1e-12
        error = values.std() / math.sqrt(len(values))
        np.testing.assert_allclose(row["interval"], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.3 * error)
    [empty] = [row for row in robustness.binned(np.zeros(2), np.ones(2), 10, 0) if row["lowest"] == 1]
    assert empty["examples"] == 0 and math.isnan(empty["accuracy"])


def split_of(example, nll_ME, correct_ME, samples=5):
    some = np.full(correct_ME.shape, samples)
    return SplitTrace(np.array(example), nll_ME, np.zeros(len(example), int), some, correct_ME, 0 * correct_ME)


def test_openings_are_joined_to_the_examples_by_id():
    nll = np.array([[1.0, 1.0, 1.0], [0.01, 0.01, 0.01]])
    train = split_of([3, 5, 8], nll, np.array([[0, 3, 5], [5, 5, 5]]))
    opened = split_of([3, 8], np.full((2, 2), np.nan), np.array([[0, 0], [1, 4]]))
    splits = {"train": train, "train after 'First'": opened, "test": opened}
    run = Run("a", "task", Trace(np.array([1, 2]), np.array([1.0, 2.0]), splits), np.full(2, np.nan))
    plain = Run("b", "task", Trace(run.trace.steps, run.trace.epochs, {"train": train}), np.full(2, np.nan))
    as_trained, first = robustness.table([run, plain], [1.2, 1.2], draws=5, seed=0)
    assert (as_trained["asked"], first["asked"], first["run"]) == ("as trained", "after 'First'", "a")
    assert [row["examples"] for row in as_trained["bins"]] == [1, 0, 0, 1, 0, 1]
    assert [row["accuracy"] for row in first["bins"] if row["examples"]] == [0.2, 0.8]


def test_runs_are_shown_together_before_each():
    """Of two runs of the same examples, half solved by one and all by the other."""
    nll = np.ones((1, 2))
    runs = []
    for name, correct in (("a", [0, 5]), ("b", [5, 5])):
        train, other = (split_of([1, 2], nll, np.array([solved])) for solved in ([2, 2], correct))
        splits = {"train": train, "train reworded": other}
        runs.append(Run(name, "task", Trace(np.array([1]), np.array([1.0]), splits), np.full(1, np.nan)))
    rows = robustness.table(runs, [1.2, 1.2], draws=5, seed=0)
    assert [(row["run"], row["asked"]) for row in rows] == [
        (run, asked) for run in (robustness.ALL, "a", "b") for asked in ("as trained", "reworded")
    ]
    assert [(row["bins"][2]["examples"], row["bins"][2]["accuracy"]) for row in rows if row["asked"] == "reworded"] == [
        (4, 0.75),
        (2, 0.5),
        (2, 1.0),
    ]


def test_real_examples_with_high_values_are_solved_by_a_run_that_never_saw_them():
    """The published full run says which examples the half run solves unseen."""
    names = {name: shared(f"{FOLDER}/gsm8k_orig_6epochs_{name}_lr2e-05_bs128.npz") for name in ("full", "half")}
    ([full], [half]) = (read_runs(path) for path in names.values())
    premem_ME = premem.pre_memorization_accuracy(full.train.accuracy, full.train.nll, PUBLISHED)
    unseen = half.trace.split("heldout")
    at = np.searchsorted(full.train.example, unseen.example)
    premem_E, accuracy_E = premem_ME[-1, at], unseen.accuracy[-1]
    assert len(at) == 3737 and not np.isin(unseen.example, half.train.example).any()
    rows = robustness.binned(premem_E, accuracy_E, draws=200, seed=0)
    np.testing.assert_allclose([row["accuracy"] for row in rows], [0.349, 0.240, 0.362, 0.512, 0.611, 0.787], atol=6e-4)
    assert abs(np.corrcoef(premem_E, accuracy_E)[0, 1] - 0.436) < 6e-4
    assert abs(np.corrcoef(full.train.accuracy[-1, at], accuracy_E)[0, 1] - 0.109) < 6e-4
    assert abs(np.corrcoef(full.train.accuracy[0, at], accuracy_E)[0, 1] - 0.589) < 6e-4
