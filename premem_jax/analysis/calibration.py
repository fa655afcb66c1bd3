"""Rules for the memorization threshold compared over a set of runs of one task and model.

A rule gives each run its threshold on perplexity: a number, (M,) for one per evaluation, or None where the run has not
what the rule needs (then it is not scored). The rules in `RULES` look at likelihoods alone; `tuned` and
`tuned_on_other_runs` look at test accuracy, and are here to be compared with.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from premem_jax.analysis import agreement, premem, threshold
from premem_jax.analysis.agreement import Points
from premem_jax.analysis.runs import Run
from premem_jax.errors import UserError

Thresholds = list[float | np.ndarray | None]

# Mean NLL in nats per token; ln of it in steps of 0.05, which include the 0.1 grid on which the published were tuned.
GRID = np.exp(np.arange(-100, 21) / 20)

# Times the lowest median train NLL after the first epoch. It was chosen on these very GSM8K runs, so for them it shows
# only that such a fraction exists.
FIRST_EPOCH_FRACTION = 0.36


def reference_run(runs: Sequence[Run], quantile: float) -> Thresholds:
    """The default: one threshold for all, from the run and evaluation with the lowest held-out mean."""
    nlls = [run.heldout_nll for run in runs if run.heldout_nll is not None]
    return [threshold.heldout_quantile(nlls, quantile).perplexity] * len(runs)


def each_run(runs: Sequence[Run], quantile: float) -> Thresholds:
    """Each run its own: its evaluation with the lowest held-out mean."""
    return [None if nll is None else _own(nll, quantile) for nll in (run.heldout_nll for run in runs)]


def median_over_runs(runs: Sequence[Run], quantile: float) -> Thresholds:
    """One threshold for all: the median of what each run would take for itself."""
    own = [p for p in each_run(runs, quantile) if p is not None]
    return [float(np.median(own)) if own else None] * len(runs)


def each_evaluation(runs: Sequence[Run], quantile: float) -> Thresholds:
    """Each evaluation of a run its own quantile."""
    return [_along(run.heldout_nll, lambda nll_ME, m: nll_ME[m : m + 1], quantile) for run in runs]


def lowest_so_far(runs: Sequence[Run], quantile: float) -> Thresholds:
    """Each run its own, at evaluation m from the lowest held-out mean up to m: what a run can know while it goes."""
    return [_along(run.heldout_nll, lambda nll_ME, m: nll_ME[: m + 1], quantile) for run in runs]


def heldout_fit(runs: Sequence[Run], quantile: float) -> Thresholds:
    """The default's quantile off a normal curve through the cube roots of the same held-out NLL.

    Mean NLL per token is close to a gamma variable, whose cube root is close to normal (Wilson and Hilferty, 1931). A
    fit of two moments has half the error of the quantile itself when a few hundred solutions are held out. The cube
    root was picked, among seven such curves, on the GSM8K runs.
    """
    nll_E, _, _ = threshold.reference([run.heldout_nll for run in runs if run.heldout_nll is not None])
    return [math.exp(fitted_quantile(nll_E, quantile))] * len(runs)


def fitted_quantile(nll_E: np.ndarray, quantile: float) -> float:
    """The quantile of the normal distribution with the mean and deviation of the cube roots, cubed; at least 0."""
    roots_E = np.cbrt(nll_E)
    return max(float(np.mean(roots_E) + stats.norm.ppf(quantile) * np.std(roots_E)), 0.0) ** 3


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
    "heldout_quantile": reference_run,
    "median_over_runs": median_over_runs,
    "each_run": each_run,
    "lowest_so_far": lowest_so_far,
    "each_evaluation": each_evaluation,
    "heldout_fit": heldout_fit,
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


def quantile_error(
    nll_E: np.ndarray, quantile: float, examples: int, draws: int, seed: int, estimate=np.quantile
) -> np.ndarray:
    """(draws,) thresholds (mean NLL): `estimate(values, quantile)` of `examples` held-out values, with replacement.

    Shows how far the threshold is a matter of which examples were kept aside.
    """
    rng = np.random.default_rng(seed)
    return np.array([estimate(rng.choice(nll_E, examples), quantile) for _ in range(draws)])


def _own(nll_ME: np.ndarray, quantile: float) -> float | None:
    try:
        return threshold.heldout_quantile([nll_ME], quantile).perplexity
    except UserError:  # nothing was measured, or too little
        return None


def _along(nll_ME: np.ndarray | None, known, quantile: float) -> np.ndarray | None:
    """(M,) thresholds, each from the rows that `known(nll_ME, m)` picks; before the first, that of the first."""
    if nll_ME is None:
        return None
    own = [_own(known(nll_ME, m), quantile) for m in range(len(nll_ME))]
    first = next((p for p in own if p is not None), None)
    if first is None:
        return None
    for m, p in enumerate(own):
        own[m] = first = first if p is None else p
    return np.array(own)
