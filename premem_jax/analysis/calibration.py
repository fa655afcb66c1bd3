"""Rules for the memorization threshold compared over a set of runs of one task and model.

A rule gives each run its threshold on perplexity: a number, (M,) numbers for one per evaluation, or None if the run
lacks the data that the rule needs; such runs are not scored. The rules in `RULES` use only likelihoods. `tuned` and
`tuned_on_other_runs` use test accuracy, and serve as a comparison.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

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
    """The default: each evaluation its own held-out quantile; runs without held-out examples take `reference_run`."""
    return [chosen.perplexity for chosen in threshold.of_runs([run.heldout_nll for run in runs], quantile)]


def lowest_quantile(runs: Sequence[Run], quantile: float) -> Thresholds:
    """Each run its lowest held-out quantile over evaluations; runs without held-out examples take the lowest of all."""
    own = [[np.quantile(row, quantile) for row in threshold.usable(run.heldout_nll).values()] for run in runs]
    lowest = min(min(row) for row in own if row)
    return [math.exp(min(row, default=lowest)) for row in own]


def median_over_runs(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the median over runs of `lowest_quantile`."""
    some = [run for run in runs if threshold.usable(run.heldout_nll)]
    return [float(np.median(lowest_quantile(some, quantile)))] * len(runs)


def reference_run(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the quantile at the evaluation with the lowest held-out mean of all runs."""
    return [math.exp(threshold.reference([run.heldout_nll for run in runs], quantile))] * len(runs)


def heldout_fraction(runs: Sequence[Run], fraction: float) -> Thresholds:
    """As the default, with a fraction of the median held-out NLL instead of a quantile."""
    rows = [threshold.usable(run.heldout_nll) for run in runs]
    reference = math.exp(fraction * np.median(min((x for row in rows for x in row.values()), key=np.mean)))
    own = [{m: fraction * np.median(nll_E) for m, nll_E in row.items()} for row in rows]
    some = [
        np.exp(threshold.kept(row, len(run.trace.steps))) if row else None for run, row in zip(runs, own, strict=True)
    ]
    return [reference if mine is None else mine for mine in some]


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
    "lowest_quantile": lowest_quantile,
    "median_over_runs": median_over_runs,
    "reference_run": reference_run,
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


TAILS = {
    "quantile": lambda nll_ME, quantile: np.quantile(nll_ME, quantile, axis=-1),
    # Of a normal distribution of log NLL, fitted to all values, or by the deviations below the median.
    "normal": lambda nll_ME, quantile: _normal(np.log(np.maximum(nll_ME, 1e-12)), quantile),
    "lower_normal": lambda nll_ME, quantile: _lower_normal(np.log(np.maximum(nll_ME, 1e-12)), quantile),
}


def redrawn(
    runs: Sequence[Run], quantile: float, examples: int, draws: int, seed: int, tail: str = "quantile"
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap of the default rule with `examples` resampled held-out examples.

    Shows how much hangs on the choice of held-out examples. Runs with equal numbers of them get the same draws, because
    the runs of a sweep share them.

    Args:
      tail: how the quantile is estimated, a name in `TAILS`.

    Returns:
      (D, M) thresholds (mean NLL), M over the evaluations of all runs with held-out examples, and (D,) R² of y = x.
    """
    rng = np.random.default_rng(seed)
    measured = [(run.train.accuracy_or_skipped, run.train.nll) for run in runs]
    rows = [threshold.usable(run.heldout_nll) for run in runs]
    every = [nll_E for row in rows for nll_E in row.values()]
    reference = min(range(len(every)), key=lambda m: np.mean(every[m]))
    sizes = np.array([len(nll_E) for nll_E in every])
    stacks = {size: np.stack([nll_E for nll_E in every if len(nll_E) == size]) for size in np.unique(sizes)}
    drawn, r2 = [], []
    for _ in range(draws):
        nll_M = np.empty(len(every))
        for size, nll_ME in stacks.items():
            nll_M[sizes == size] = TAILS[tail](nll_ME[:, rng.integers(size, size=examples)], quantile)
        left = iter(nll_M)
        thresholds = [
            np.exp(threshold.kept({m: next(left) for m in row}, len(run.trace.steps)))
            if row
            else math.exp(nll_M[reference])
            for run, row in zip(runs, rows, strict=True)
        ]
        p = _points(runs, measured, thresholds)
        drawn.append(nll_M)
        r2.append(agreement.r2_identity(p.x, p.y))
    return np.array(drawn), np.array(r2)


def _normal(x_ME: np.ndarray, quantile: float) -> np.ndarray:
    return np.exp(np.mean(x_ME, axis=-1) + np.std(x_ME, axis=-1) * norm.ppf(quantile))


def _lower_normal(x_ME: np.ndarray, quantile: float) -> np.ndarray:
    middle_M = np.median(x_ME, axis=-1)
    below_ME = np.minimum(x_ME - middle_M[..., None], 0)
    count_M = np.sum(below_ME < 0, axis=-1)
    return np.exp(middle_M + np.sqrt(np.sum(below_ME**2, axis=-1) / count_M) * norm.ppf(quantile))
