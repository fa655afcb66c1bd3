"""Rules for the memorization threshold compared over a set of runs of one task and model.

A rule gives each run its threshold on perplexity: a number, (M,) numbers for one per evaluation, or None if the run
lacks the data that the rule needs; such runs are not scored. The rules in `RULES` use only likelihoods. `tuned` and
`tuned_on_other_runs` use test accuracy, and serve as a comparison.
"""

import math
from collections.abc import Sequence

import numpy as np

from premem_jax.analysis import agreement, premem, threshold
from premem_jax.analysis.agreement import Points
from premem_jax.analysis.runs import Run

Thresholds = list[float | np.ndarray | None]

# Mean NLL in nats per token; its ln in steps of 0.05, which include the 0.1 grid of the published tuning.
GRID = np.exp(np.arange(-100, 21) / 20)

# Factor of the lowest median train NLL after the first epoch. It was chosen on the published GSM8K runs, so there it
# only shows that such a fraction exists.
FIRST_EPOCH_FRACTION = 0.36


def heldout_quantile(runs: Sequence[Run], quantile: float) -> Thresholds:
    """The default: minimum over evaluations of a run's held-out quantile; runs without one take the lowest of all."""
    return [chosen.perplexity for chosen in threshold.of_runs([run.heldout_nll for run in runs], quantile)]


def median_over_runs(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the median over runs of the default rule's."""
    nlls = [run.heldout_nll for run in runs if threshold.usable(run.heldout_nll)]
    return [float(np.median([chosen.perplexity for chosen in threshold.of_runs(nlls, quantile)]))] * len(runs)


def reference_run(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the quantile at the evaluation with the lowest held-out mean of all runs."""
    rows = (nll_E for run in runs for nll_E in threshold.usable(run.heldout_nll).values())
    return [math.exp(np.quantile(min(rows, key=np.mean), quantile))] * len(runs)


def each_evaluation(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold per evaluation, its own quantile; runs without held-out examples take that of `reference_run`.

    An evaluation without held-out NLL takes the previous threshold, or else the first.
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
    """One threshold for all: `fraction` times the lowest median train NLL of a run after its first epoch.

    Needs no held-out examples, but an evaluation within the first epoch; the last such one counts.
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
    """Pre-memorization accuracy against test accuracy, at every evaluation of the runs with a threshold."""
    return _points(runs, [(run.train.accuracy_or_skipped, run.train.nll) for run in runs], thresholds)


def _points(runs: Sequence[Run], measured: Sequence[tuple[np.ndarray, np.ndarray]], thresholds: Thresholds) -> Points:
    xs = []
    for run, (accuracy_ME, nll_ME), perplexity in zip(runs, measured, thresholds, strict=True):
        if perplexity is None:
            xs.append(np.full(len(run.trace.steps), np.nan))
        else:
            xs.append(premem.measured_mean(premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)))
    return agreement.points(xs, [run.test_accuracy for run in runs])


class Sensitivity:
    """Pre-memorization accuracy at every threshold of `GRID`, and its agreement with test accuracy."""

    def __init__(self, runs: Sequence[Run]):
        measured = [(run.train.accuracy_or_skipped, run.train.nll) for run in runs]
        per_threshold = [_points(runs, measured, [math.exp(nll)] * len(runs)) for nll in GRID]
        self.nll = GRID
        self.run, self.y = per_threshold[0].run, per_threshold[0].y
        self.x_GN = np.stack([p.x for p in per_threshold])

    def r2(self, statistic=agreement.r2_identity, runs: np.ndarray | None = None) -> np.ndarray:
        """The statistic at each threshold (G,), over the points of `runs` (indices; default: all)."""
        here = np.ones(len(self.y), bool) if runs is None else np.isin(self.run, runs)
        return np.array([statistic(x[here], self.y[here]) for x in self.x_GN])

    def at(self, nll_R: np.ndarray) -> np.ndarray:
        """Pre-memorization accuracy (N,), each run at its own threshold (mean NLL), interpolated linearly in `GRID`."""
        place_R = np.interp(np.log(np.maximum(nll_R, self.nll[0])), np.log(self.nll), np.arange(len(self.nll)))
        place_N = place_R[self.run]
        below_N = np.minimum(place_N.astype(int), len(self.nll) - 2)
        points_N = np.arange(len(self.run))
        low_N, high_N = self.x_GN[below_N, points_N], self.x_GN[below_N + 1, points_N]
        return low_N + (place_N - below_N) * (high_N - low_N)

    def tuned(self, runs: np.ndarray | None = None) -> tuple[float, float]:
        """The threshold (mean NLL) with the best R² of y = x over the runs, and that R²; NaN if undefined.

        Uses test accuracy.
        """
        r2_G = self.r2(runs=runs)
        if np.isnan(r2_G).all():
            return math.nan, math.nan
        best = int(np.nanargmax(r2_G))
        return float(self.nll[best]), float(r2_G[best])

    def tuned_on_other_runs(self) -> tuple[Points, list[float]]:
        """Each run's points at the threshold tuned on all other runs, and these thresholds (mean NLL)."""
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
    """Bootstrap of the default rule: thresholds (draws, R) (mean NLL) from `examples` resampled held-out examples.

    Shows how the thresholds depend on the choice of held-out examples. Runs with equal numbers of them get the same
    draws, because the runs of a sweep share them.
    """
    rng = np.random.default_rng(seed)
    by_size: dict[int, list[tuple[int, np.ndarray]]] = {}
    for at, run in enumerate(runs):
        for nll_E in threshold.usable(run.heldout_nll).values():
            by_size.setdefault(len(nll_E), []).append((at, nll_E))
    stacks = [_Sorted(rows, quantile, examples) for rows in by_size.values()]
    own_DR = np.full((draws, len(runs)), np.inf)
    for own_R in own_DR:
        place = rng.random(examples)
        for stack in stacks:
            np.minimum.at(own_R, stack.run_M, stack.quantiles(place))
    lowest_D1 = own_DR.min(axis=1, keepdims=True)
    return np.where(np.isinf(own_DR), lowest_D1, own_DR)


class _Sorted:
    """Evaluations of E held-out examples each, for quantiles of `examples` of them drawn with replacement.

    Only the lowest values decide a low quantile; each row keeps as many as nearly all draws need.
    """

    def __init__(self, rows: list[tuple[int, np.ndarray]], quantile: float, examples: int):
        self.run_M = np.array([run for run, _ in rows])
        nll_ME = np.stack([nll_E for _, nll_E in rows])
        self.order_ME = np.argsort(nll_ME, axis=1, kind="stable")
        self.nll_ME = np.take_along_axis(nll_ME, self.order_ME, axis=1)
        place = (examples - 1) * quantile
        self.below, self.part = int(place), place - int(place)
        self.above = min(self.below + 1, examples - 1)
        self.few = 4 * (self.above + 8) * nll_ME.shape[1] // examples + 8

    def quantiles(self, place_N: np.ndarray) -> np.ndarray:
        """(M,) of the examples at these places, fractions of the way through the row."""
        M, E = self.nll_ME.shape
        times_E = np.bincount((place_N * E).astype(int), minlength=E)
        for kept in (self.few, E):
            drawn_MK = np.cumsum(times_E[self.order_ME[:, :kept]], axis=1)
            if np.all(drawn_MK[:, -1] > self.above):
                break
        first = lambda rank: self.nll_ME[np.arange(M), np.argmax(drawn_MK > rank, axis=1)]
        low_M, high_M = first(self.below), first(self.above)
        return low_M + self.part * (high_M - low_M)
