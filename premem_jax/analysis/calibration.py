"""Rules for the memorization threshold compared over a set of runs of one task and model.

A rule gives each run its threshold on perplexity: a number, (M,) for one per evaluation, or None where the run has not
what the rule needs (then it is not scored). The rules in `RULES` look at likelihoods alone; `tuned` and
`tuned_on_other_runs` look at test accuracy, and are here to be compared with.
"""

import math
from collections.abc import Sequence

import numpy as np

from premem_jax.analysis import agreement, premem, threshold
from premem_jax.analysis.agreement import Points
from premem_jax.analysis.runs import Run

Thresholds = list[float | np.ndarray | None]

# Mean NLL in nats per token; ln of it in steps of 0.05, which include the 0.1 grid on which the published were tuned.
GRID = np.exp(np.arange(-100, 21) / 20)

# Times the lowest median train NLL after the first epoch. It was chosen on these very GSM8K runs, so for them it shows
# only that such a fraction exists.
FIRST_EPOCH_FRACTION = 0.36


def heldout_quantile(runs: Sequence[Run], quantile: float) -> Thresholds:
    """The default: each run its own, the lowest quantile over its evaluations, and the lowest of all without any."""
    return [chosen.perplexity for chosen in threshold.of_runs([run.heldout_nll for run in runs], quantile)]


def median_over_runs(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the median of those that runs have of their own by the default rule."""
    nlls = [run.heldout_nll for run in runs if threshold.usable(run.heldout_nll)]
    return [float(np.median([chosen.perplexity for chosen in threshold.of_runs(nlls, quantile)]))] * len(runs)


def reference_run(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the quantile where, over all evaluations of all runs, the held-out mean is lowest."""
    rows = (nll_E for run in runs for nll_E in threshold.usable(run.heldout_nll).values())
    return [math.exp(np.quantile(min(rows, key=np.mean), quantile))] * len(runs)


def each_evaluation(runs: Sequence[Run], quantile: float) -> Thresholds:
    """Each evaluation of a run its own quantile; that of `reference_run` for runs without held-out examples.

    An evaluation that was not measured has the threshold before it, or else the first.
    """
    thresholds = reference_run(runs, quantile)
    for at, run in enumerate(runs):
        rows = threshold.usable(run.heldout_nll)
        if rows:
            own = np.exp([np.quantile(nll_E, quantile) for nll_E in rows.values()])
            before_M = np.searchsorted(list(rows), np.arange(len(run.heldout_nll)), side="right") - 1
            thresholds[at] = own[np.maximum(before_M, 0)]
    return thresholds


def first_epoch_fraction(runs: Sequence[Run], fraction: float = FIRST_EPOCH_FRACTION) -> Thresholds:
    """One threshold for all, `fraction` of the lowest median train NLL of a run after its first epoch.

    It needs nothing held out, but an evaluation by the end of the first epoch (the last such one counts).
    """
    medians = []
    for run in runs:
        measured_M = np.isfinite(run.train.nll).any(axis=1)
        within = np.flatnonzero(measured_M & (run.trace.epochs > 0) & (run.trace.epochs < 1 + 1e-6))
        if len(within):
            medians.append(np.nanmedian(run.train.nll[within[-1]]))
    return [math.exp(fraction * min(medians)) if medians else None] * len(runs)


RULES = {
    "heldout_quantile": heldout_quantile,
    "median_over_runs": median_over_runs,
    "reference_run": reference_run,
    "each_evaluation": each_evaluation,
}


def points(runs: Sequence[Run], thresholds: Thresholds) -> Points:
    """Pre-memorization accuracy against test accuracy, at every evaluation of the runs that have a threshold."""
    xs = []
    for run, perplexity in zip(runs, thresholds, strict=True):
        if perplexity is None:
            xs.append(np.full(len(run.trace.steps), np.nan))
        else:
            accuracy_ME, nll_ME = run.train.accuracy_or_skipped, run.train.nll
            xs.append(premem.measured_mean(premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)))
    return agreement.points(xs, [run.test_accuracy for run in runs])


class Sensitivity:
    """Pre-memorization accuracy at every threshold of `GRID`, and how well each of them follows test accuracy."""

    def __init__(self, runs: Sequence[Run]):
        per_threshold = [points(runs, [math.exp(nll)] * len(runs)) for nll in GRID]
        self.nll = GRID
        self.run, self.y = per_threshold[0].run, per_threshold[0].y
        self.x_GN = np.stack([p.x for p in per_threshold])

    def r2(self, statistic=agreement.r2_identity, runs: np.ndarray | None = None) -> np.ndarray:
        """(G,) of the statistic over the points of the runs (indices; all by default)."""
        here = np.ones(len(self.y), bool) if runs is None else np.isin(self.run, runs)
        return np.array([statistic(x[here], self.y[here]) for x in self.x_GN])

    def at(self, nll_R: np.ndarray) -> np.ndarray:
        """(N,) pre-memorization accuracy, each run at its own threshold (mean NLL), linear between those of `GRID`."""
        place_R = np.interp(np.log(np.maximum(nll_R, self.nll[0])), np.log(self.nll), np.arange(len(self.nll)))
        place_N = place_R[self.run]
        below_N = np.minimum(place_N.astype(int), len(self.nll) - 2)
        points_N = np.arange(len(self.run))
        low_N, high_N = self.x_GN[below_N, points_N], self.x_GN[below_N + 1, points_N]
        return low_N + (place_N - below_N) * (high_N - low_N)

    def tuned(self, runs: np.ndarray | None = None) -> tuple[float, float]:
        """The threshold (mean NLL) with the best R² against y = x over the runs, and that R²; NaN where none is.

        It looks at test accuracy.
        """
        r2_G = self.r2(runs=runs)
        if np.isnan(r2_G).all():
            return math.nan, math.nan
        best = int(np.nanargmax(r2_G))
        return float(self.nll[best]), float(r2_G[best])

    def tuned_on_other_runs(self) -> tuple[Points, list[float]]:
        """Each run's points at the threshold tuned on all the others, and those thresholds (mean NLL)."""
        runs = np.unique(self.run)
        x, chosen = np.full(len(self.y), np.nan), []
        for run in runs:
            nll, _ = self.tuned(runs=runs[runs != run])
            chosen.append(nll)
            if not math.isnan(nll):
                here = self.run == run
                x[here] = self.x_GN[int(np.argmin(np.abs(self.nll - nll)))][here]
        known = np.isfinite(x)
        return Points(x[known], self.y[known], self.run[known]), chosen


def redrawn(runs: Sequence[Run], quantile: float, examples: int, draws: int, seed: int) -> np.ndarray:
    """(draws, R) thresholds (mean NLL) by the default rule from `examples` held-out examples, drawn with replacement.

    Shows how far the thresholds are a matter of which examples were kept aside. Runs with equally many draw the same
    ones, since the runs of a sweep have the same.
    """
    rng = np.random.default_rng(seed)
    heldout = [list(threshold.usable(run.heldout_nll).values()) for run in runs]

    def draw() -> np.ndarray:
        place = rng.random(examples)
        drawn = ([nll_E[(place * len(nll_E)).astype(int)] for nll_E in rows] for rows in heldout)
        own_R = np.array([np.quantile(nll_ME, quantile, axis=1).min() if nll_ME else np.inf for nll_ME in drawn])
        return np.where(np.isinf(own_R), own_R.min(), own_R)

    return np.array([draw() for _ in range(draws)])
