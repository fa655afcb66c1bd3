"""What a trace tells about examples: against loops over single examples, and on the released runs."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.analysis import audit, study, threshold
from premem_jax.analysis.audit_columns import COLUMNS
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.trace import SplitTrace, Trace
from tests.analysis.traces import FOLDER
from tests.shared import shared

P = 1.3
RIGHT = 77


@st.composite
def traces(draw, samples=4):
    """A trace with hashes of answers: 77 is right, 2 to 10 are wrong, 0 is none; some evaluations miss an example."""
    M, E = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drawn = rng.choice([RIGHT, RIGHT, 0, 2, 4, 6, 10], (M, E, samples))
    there = rng.random((M, E)) < 0.9
    there[-1] = True
    drawn[~there] = 0
    nll = np.where(rng.random((M, E)) < 0.05, np.nan, rng.choice([0.1, 0.2, 0.3, 0.4], (M, E)))
    nll[0] = rng.choice([0.1, 0.3], E)
    correct, counts = (drawn == RIGHT).sum(axis=2), samples * there
    unparsed = ((drawn == 0) & there[:, :, None]).sum(axis=2)
    split = SplitTrace(
        10 + np.arange(E), nll, np.ones(E, int), counts, correct, unparsed, answers=drawn.astype(np.uint32)
    )
    start = draw(st.booleans())
    return Trace(np.arange(M) if start and M > 1 else 1 + np.arange(M), np.arange(M) / 2, {"train": split})


def open_there(split, m, e):
    return split.samples[m, e] > 0 and not split.nll[m, e] < math.log(P)


@settings(deadline=None)
@given(traces())
def test_columns_are_their_loops(trace):
    found, split = audit.audit(trace, threshold.given(P)), trace.splits["train"]
    assert set(found) == {"example", *COLUMNS} and found["example"].tolist() == split.example.tolist()
    begin = audit.first_evaluation(trace, split)
    for e in range(len(split.example)):
        rows = [
            (
                int(trace.steps[m]),
                split.correct[m, e] / split.samples[m, e] if split.samples[m, e] else None,
                split.nll[m, e],
            )
            for m in range(len(trace.steps))
        ]
        known = [accuracy for _, accuracy, _ in rows if accuracy is not None]
        kept = [m for m in range(begin, len(rows)) if rows[m][1] is not None and not rows[m][2] < math.log(P)]
        at_once = rows[begin][2] < math.log(P)
        mine = {name: found[name][e] for name in COLUMNS}
        same = lambda a, b: a == pytest.approx(math.nan if b is None else b, nan_ok=True)
        assert mine["memorized_at_once"] == at_once and same(mine["first_accuracy"], rows[begin][1])
        open_mean = np.mean([rows[m][1] for m in kept]) if kept else None
        assert same(mine["unmemorized_accuracy"], rows[begin][1] if at_once else open_mean)
        assert same(mine["mean_accuracy"], np.mean(known)) and same(mine["deviation"], np.std(known))
        solved = next((step for step, accuracy, _ in rows if accuracy is not None and accuracy >= 0.5), -1)
        memorized = next((step for step, _, nll in rows if nll < math.log(P)), -1)
        assert (mine["solved_step"], mine["memorized_step"]) == (solved, memorized)
        assert mine["memorized_first"] == (memorized >= 0 and (solved < 0 or memorized <= solved))
        assert mine["forgotten"] == sum(a >= 0.5 > b for a, b in itertools.pairwise(known))
        agreed, right, total = collections.Counter(), 0.0, 0.0
        for m in kept:
            of_open = [
                split.correct[m, k] / split.samples[m, k] for k in range(len(split.example)) if open_there(split, m, k)
            ]
            weight = np.mean(of_open)  # how well the model does at that evaluation
            for answer in split.answers[m, e].tolist():
                total, right = total + weight, right + weight * (answer == RIGHT)
                agreed[answer] += weight * (answer not in (0, RIGHT))
        most = max(agreed.values(), default=0)
        if split.answers.any():
            assert same(mine["agreement"], most / total if total else None)
            assert same(mine["suspicion"], (most - right - 1) / (total + 2) if total else None)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 40))
def test_clusters_have_like_curves_and_fall_in_order_of_their_end(seed, k, examples):
    rng = np.random.default_rng(seed)
    kind = rng.integers(k, size=examples)
    nll = np.exp(3.0 * kind - 5 + rng.normal(0, 0.05, (4, examples)))
    label = audit.clusters(nll, k, seed)
    assert label.min() >= 0 and label.max() < k
    ends = [np.log(nll[-1, label == i]).mean() for i in np.unique(label)]
    assert np.all(np.diff(ends) < 0) or len(ends) == 1
    np.testing.assert_array_equal(label, audit.clusters(nll, k, seed))
    assert audit.clusters(np.full((2, 3), np.nan), 4).tolist() == [-1, -1, -1]


def test_over_memorization_is_the_rise_above_the_lowest_so_far():
    nll = np.array([[0.9, 1.1], [0.4, 0.6], [np.nan, np.nan], [0.6, 0.8], [0.3, 0.5]])
    np.testing.assert_allclose(audit.over_memorization(nll), [0, 0, np.nan, 0.2, 0])
    assert len(audit.over_memorization(None)) == 0


def test_ranks_are_from_the_highest_with_the_unknown_last():
    values, ties = np.array([0.1, np.nan, 0.5, 0.1, 0.5]), np.array([1, 9, 2, 3, 2])
    assert audit.ranked(values, ties).tolist() == [2, 4, 3, 0, 1]
    assert audit.ranked(values).tolist() == [2, 4, 0, 3, 1]


def test_planted_answers_on_which_samples_agree_come_first():
    """Of 400 examples, eight have another answer than the label says; forty are hard, and answered at random."""
    rng, M, E, R = np.random.default_rng(0), 4, 400, 5
    wrong, hard = np.arange(8), np.arange(8, 48)
    drawn = np.where(rng.random((M, E, R)) < 0.7, RIGHT, 2 * rng.integers(1, 20, (M, E, R)))
    drawn[:, wrong] = np.where(rng.random((M, 8, R)) < 0.7, 100, 2 * rng.integers(1, 20, (M, 8, R)))
    drawn[:, hard] = 2 * rng.integers(1, 20, (M, 40, R))
    nll, correct = np.full((M, E), 1.0), (drawn == RIGHT).sum(axis=2)
    settings = dict(
        example=np.arange(E), nll=nll, tokens=np.ones(E), samples=np.full((M, E), R), correct=correct, unparsed=0
    )
    of = lambda **more: audit.audit(
        Trace(1 + np.arange(M), np.arange(M), {"train": SplitTrace(**settings, **more)}), LIMIT
    )
    with_hash = audit.ranked(of(answers=drawn.astype(np.uint32))["suspicion"])
    assert set(with_hash[:8].tolist()) == set(wrong.tolist())
    without = of()
    assert np.isnan(without["agreement"]).all()
    assert set(audit.ranked(without["suspicion"])[:48].tolist()) >= set(range(48)) - {0}


LIMIT = threshold.given(P)


@pytest.fixture(scope="module")
def released():
    runs = read_runs(shared(FOLDER))
    return runs, study.choose(runs, "heldout_quantile", 0.01, 0.0)


def test_certain_label_errors_of_gsm8k_rank_high(released):
    """Four rows whose solutions are wrong, found by hand: among the first 5 % of 7,473."""
    found = audit.pooled(list(zip(*released, strict=True)))
    order = found["example"][audit.ranked(found["suspicion"])].tolist()
    assert all(order.index(row) < 0.05 * 7473 for row in (167, 3263, 5782, 7401))
    assert order.index(167) < 70 and order.index(7401) < 70


def test_what_ranks_the_examples_of_the_released_runs(released):
    """Correlation with the accuracy of the same examples under the half run, which never saw them."""
    runs, chosen = released
    by_name = {run.name.split("orig_")[1]: (run, mine) for run, mine in zip(runs, chosen, strict=True)}
    heldout = by_name["6epochs_half_lr2e-05_bs128"][0].trace.splits["heldout"]
    full, mine = by_name["6epochs_full_lr2e-05_bs128"]
    found, truth = audit.audit(full.trace, mine), heldout.accuracy.mean(axis=0)
    r = {name: np.corrcoef(values[heldout.example].astype(float), truth)[0, 1] for name, values in found.items()}
    assert r["first_accuracy"] == pytest.approx(0.71, abs=0.02)
    assert r["before_memorization"] == pytest.approx(0.66, abs=0.02)
    assert r["mean_accuracy"] == pytest.approx(0.649, abs=0.02)
    assert r["unmemorized_accuracy"] > r["first_accuracy"]


def test_memorization_is_the_gain_of_having_been_trained_on(released):
    """Of examples that the half or the quarter run left out; runs that memorize end at 1 on what they saw."""
    runs, _ = released
    found = audit.memorization(runs)
    left_out = np.union1d(*(run.trace.splits["heldout"].example for run in runs if "heldout" in run.trace.splits))
    np.testing.assert_array_equal(found["example"], left_out)
    e = int(found["example"][5])
    values = {"train": [], "heldout": []}
    for run in runs:
        for name in values:
            if name in run.trace.splits and e in run.trace.splits[name].example:
                split = run.trace.splits[name]
                values[name].append(split.accuracy[-1][split.example == e][0])
    assert found["memorization"][5] == pytest.approx(np.mean(values["train"]) - np.mean(values["heldout"]))
    assert len(audit.memorization([])["example"]) == 0
