"""Agreement of a predictor with test accuracy over the evaluations of many runs.

A point is one evaluation of one run: predicted x, measured y. Points along a run are strongly dependent, so the run is
the unit of resampling: intervals are bootstraps over runs, and cross-validation leaves out whole runs.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Points:
    """N evaluations; `points` omits those with an unknown x or y."""

    x: np.ndarray  # (N,) float64, the predictor
    y: np.ndarray  # (N,) float64, the test accuracy
    run: np.ndarray  # (N,) int, the run that the evaluation belongs to

    def only(self, which: np.ndarray) -> "Points":
        """The points selected by `which`, a mask or indices."""
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
    """1 - sum (y - x)² / sum (y - mean y)²: the variance explained by y = x, without a fit.

    Below 0 if the mean of y predicts better; NaN for constant y. Source: the paper's R².
    """
    return float(1 - np.sum((y - x) ** 2) / np.sum((y - np.mean(y)) ** 2)) if _varies(y) else np.nan


def r2_linear(x: np.ndarray, y: np.ndarray) -> float:
    """The squared Pearson correlation, which is R² of the best line; NaN if x or y is constant."""
    if not (_varies(x) and _varies(y)):
        return np.nan
    x, y = x - np.mean(x), y - np.mean(y)
    return float(np.sum(x * y) ** 2 / (np.sum(x**2) * np.sum(y**2)))


def mean_absolute_error(x: np.ndarray, y: np.ndarray) -> float:
    """mean |y - x|."""
    return float(np.mean(np.abs(y - x))) if len(y) else np.nan


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, ties with their mean rank; NaN if x or y is constant."""
    if not (_varies(x) and _varies(y)):
        return np.nan
    x, y = (stats.rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    return float(np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)))


def _varies(values: np.ndarray) -> bool:
    """Whether values vary. Compares the values, because rounding can make deviations of equal values nonzero.

    Deviations whose squares underflow to 0 do not count.
    """
    return len(values) > 0 and np.ptp(values) > 1e-150


STATISTICS = {
    "r2_identity": r2_identity,
    "r2_linear": r2_linear,
    "mae": mean_absolute_error,
    "rank_correlation": rank_correlation,
}
IN_UNITS_OF_ACCURACY = ("r2_identity", "mae")  # the others do not depend on the predictor's units


def centered_within(p: Points, group_of_run: np.ndarray) -> Points:
    """x and y minus their group means, for groups of at least two runs.

    The residuals show whether the predictor separates runs within a group, such as one training-set size.
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
    """Cross-validated R²: each run is predicted by the least-squares line of the other runs.

    NaN with fewer than three runs, or if the other runs do not define a line.
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
    """Lowest and highest value of a statistic with any one run left out; NaN with fewer than three runs."""
    runs = np.unique(p.run)
    values = [STATISTICS[name](p.x[p.run != run], p.y[p.run != run]) for run in runs] if len(runs) > 2 else [np.nan]
    return [float(np.min(values)), float(np.max(values))]
