"""How well a predictor follows test accuracy over the evaluations of many runs.

A point is one evaluation of one run: predicted x, measured y. Points along a run depend on each other strongly, so what
varies by chance is the run: intervals resample runs, and validation leaves out whole runs.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Points:
    """N evaluations; those with an unknown x or y are left out by `points`."""

    x: np.ndarray  # (N,) float64, the predictor
    y: np.ndarray  # (N,) float64, the test accuracy
    run: np.ndarray  # (N,) int, the run that the evaluation belongs to

    def only(self, which: np.ndarray) -> "Points":
        """The points that `which`, a mask or indices, names."""
        return Points(self.x[which], self.y[which], self.run[which])


def points(xs: list[np.ndarray], ys: list[np.ndarray]) -> Points:
    """Joins, for each run, (M,) values of a predictor and of the test accuracy."""
    joined = Points(
        np.concatenate(xs).astype(np.float64),
        np.concatenate(ys).astype(np.float64),
        np.repeat(np.arange(len(xs)), [len(x) for x in xs]),
    )
    return joined.only(np.isfinite(joined.x) & np.isfinite(joined.y))


def last_of_runs(p: Points) -> Points:
    """The last point of each run."""
    return p.only(np.flatnonzero(np.append(p.run[1:] != p.run[:-1], True)) if len(p.run) else np.arange(0))


def r2_identity(x: np.ndarray, y: np.ndarray) -> float:
    """1 - sum (y - x)² / sum (y - mean y)²: the share of variance that y = x explains without a fit.

    Below 0 where the mean of y would be the better prediction; NaN for constant y. Source: the paper's R².
    """
    return float(1 - np.sum((y - x) ** 2) / np.sum((y - np.mean(y)) ** 2)) if _varies(y) else np.nan


def r2_linear(x: np.ndarray, y: np.ndarray) -> float:
    """The squared Pearson correlation, which is R² of the best line; NaN where x or y is constant."""
    if not (_varies(x) and _varies(y)):
        return np.nan
    x, y = x - np.mean(x), y - np.mean(y)
    return float(np.sum(x * y) ** 2 / (np.sum(x**2) * np.sum(y**2)))


def mean_absolute_error(x: np.ndarray, y: np.ndarray) -> float:
    """mean |y - x|."""
    return float(np.mean(np.abs(y - x))) if len(y) else np.nan


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's: the correlation of the ranks, ties with their mean rank; NaN where x or y is constant."""
    if not (_varies(x) and _varies(y)):
        return np.nan
    x, y = (stats.rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    return float(np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)))


def _varies(values: np.ndarray) -> bool:
    """Asked of the values, since deviations from the mean of equal ones may be off zero by rounding.

    Deviations whose squares underflow to 0 are no variation either.
    """
    return len(values) > 0 and np.ptp(values) > 1e-150


STATISTICS = {
    "r2_identity": r2_identity,
    "r2_linear": r2_linear,
    "mae": mean_absolute_error,
    "rank_correlation": rank_correlation,
}
IN_UNITS_OF_ACCURACY = ("r2_identity", "mae")  # the others do not depend on the predictor's units


def bootstrap_interval(p: Points, names: list[str], draws: int, seed: int, level: float = 0.95) -> dict[str, list]:
    """Percentile intervals [low, high] of `STATISTICS`, from resampling as many runs, with replacement, `draws` times.

    A draw in which a statistic is undefined (one run with one evaluation, again and again) does not count; NaN where
    none defines it.
    """
    rng = np.random.default_rng(seed)
    runs = [np.flatnonzero(p.run == run) for run in np.unique(p.run)]
    drawn = {name: [] for name in names}
    for _ in range(draws if len(runs) > 1 else 0):
        which = np.concatenate([runs[i] for i in rng.integers(len(runs), size=len(runs))])
        x, y = p.x[which], p.y[which]
        for name in names:
            drawn[name].append(STATISTICS[name](x, y))
    tails = [50 - 50 * level, 50 + 50 * level]
    out = {}
    for name, values in drawn.items():
        known = np.array(values)[np.isfinite(values)]
        out[name] = np.percentile(known, tails).tolist() if len(known) else [np.nan, np.nan]
    return out


def centered_within(p: Points, group_of_run: np.ndarray) -> Points:
    """x and y minus their means over the points of a group, for groups of two runs or more.

    What is left says whether the predictor tells runs of one group apart, such as of one training-set size.
    """
    group = np.asarray(group_of_run)[p.run]
    x, y = p.x.copy(), p.y.copy()
    keep = np.zeros(len(x), bool)
    for value in np.unique(group):
        here = group == value
        x[here] -= x[here].mean()
        y[here] -= y[here].mean()
        keep |= here & (len(np.unique(p.run[here])) > 1)
    return Points(x, y, p.run).only(keep)


def r2_left_out(p: Points) -> float:
    """R² of predictions for each run by the line that fits the other runs best (least squares), over all points.

    NaN with fewer than three runs, or where the other runs do not define a line.
    """
    predicted = np.full(len(p.y), np.nan)
    for run in np.unique(p.run):
        out = p.run == run
        x, y = p.x[~out], p.y[~out]
        if _varies(x):
            slope = np.sum((x - np.mean(x)) * (y - np.mean(y))) / np.sum((x - np.mean(x)) ** 2)
            predicted[out] = np.mean(y) + slope * (p.x[out] - np.mean(x))
    return r2_identity(predicted, p.y) if len(np.unique(p.run)) > 2 else np.nan


def range_without_a_run(p: Points, name: str) -> list[float]:
    """The lowest and the highest value of a statistic when any one run is taken away; NaN with fewer than three."""
    runs = np.unique(p.run)
    values = [STATISTICS[name](p.x[p.run != run], p.y[p.run != run]) for run in runs] if len(runs) > 2 else [np.nan]
    return [float(np.min(values)), float(np.max(values))]
