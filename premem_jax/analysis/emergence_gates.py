"""What the law of emergence presumes, tried on the rows of a ladder: one curve serves models of all sizes."""

from itertools import combinations
from typing import NamedTuple

import numpy as np

from premem_jax.analysis.emergence_table import Rows

ALIKE = 0.9  # share of the points that must differ by less than two standard errors


class Alike(NamedTuple):
    """Models of two or more sizes compared at equal loss and equal amount of data."""

    points: int
    difference: float  # mean, of the larger size over the smaller, in accuracy
    standard_error: float  # of a point, root mean square
    share: float  # of points within two standard errors

    @property
    def holds(self) -> bool:
        return self.share >= ALIKE


def alike(rows: Rows, sizes: np.ndarray) -> Alike | None:
    """Whether sizes agree at equal loss; None where the losses of no two overlap.

    The curve of one size is interpolated at the losses of the other. A point's error is binomial, and that of its
    subsets where it has several.

    Args:
      sizes: the size of the model of each row (N,), in any unit.
    """
    differences, errors = [], []
    for amount in np.unique(rows.amount):
        curves = {size: _curve(rows.where((rows.amount == amount) & (sizes == size))) for size in np.unique(sizes)}
        for small, large in combinations([curve for _, curve in sorted(curves.items()) if len(curve[0]) > 1], 2):
            loss, mean, variance = large
            inside = (loss >= small[0][0]) & (loss <= small[0][-1])
            differences.extend(mean[inside] - np.interp(loss[inside], small[0], small[1]))
            errors.extend(np.sqrt(variance[inside] + np.interp(loss[inside], small[0], small[2])))
    if not differences:
        return None
    d, e = np.array(differences), np.array(errors)
    root = float(np.sqrt(np.mean(e**2)))
    return Alike(len(d), float(np.mean(d)), root, float(np.mean(np.abs(d) <= 2 * e)))


def _curve(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses in increasing order, mean accuracies, and their variances."""
    losses = np.unique(rows.loss)
    mean, variance = np.zeros(len(losses)), np.zeros(len(losses))
    for i, loss in enumerate(losses):
        mine = rows.where(rows.loss == loss)
        mean[i] = p = np.mean(mine.accuracy)
        right = (np.sum(mine.accuracy * mine.items) + 1) / (np.sum(mine.items) + 2)  # of all wrong, the error is not 0
        variance[i] = right * (1 - right) / np.min(mine.items)
        if len(mine.loss) > 1:
            variance[i] = max(variance[i], np.sum((mine.accuracy - p) ** 2) / (len(mine.loss) - 1)) / len(mine.loss)
    return losses, mean, variance
