"""The elbow of one curve of accuracy against loss: accuracy = slope * max(elbow - L, 0) + floor.

It is how the truth is read from few-shot accuracies of all models, and what baselines know about one amount of data.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

LEAST = 4  # points of a curve: one more than there are parameters
BETWEEN = 40  # elbows that are tried between two losses


class Elbow(NamedTuple):
    """A curve's elbow in nats; AIC of three models, of which the elbow should be the lowest; None on a flat curve."""

    elbow: float
    slope: float
    floor: float
    aic: dict[str, float]  # relu, line, constant

    @property
    def bends(self) -> bool:
        """Whether an elbow describes the curve better than a line and a constant do."""
        return self.aic["relu"] < min(self.aic["line"], self.aic["constant"])

    def accuracy(self, loss):
        """The fitted accuracy at a loss."""
        return self.slope * np.maximum(self.elbow - loss, 0) + self.floor


def elbow(loss: np.ndarray, accuracy: np.ndarray, items: np.ndarray | None = None) -> Elbow | None:
    """The least-squares elbow of a curve, or None where it has too few losses or does not rise.

    The elbow lies between the second-lowest loss and the highest: below, a single point would decide on it.

    Args:
      items: test items behind each accuracy, as weights.
    """
    weight = np.ones(len(loss)) if items is None else items / np.mean(items)
    losses = np.unique(loss)
    if len(losses) < LEAST:
        return None
    parts = [np.linspace(a, b, BETWEEN, endpoint=False) for a, b in pairwise(losses[1:])]
    tried = np.concatenate([*parts, losses[-1:]])
    best = int(np.argmin([_line(np.maximum(e - loss, 0), accuracy, weight)[0] for e in tried]))
    for _ in range(3):  # a finer grid around the best one
        around = np.linspace(tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)], 2 * BETWEEN)
        tried, best = around, int(np.argmin([_line(np.maximum(e - loss, 0), accuracy, weight)[0] for e in around]))
    sse, slope, floor = _line(np.maximum(tried[best] - loss, 0), accuracy, weight)
    if slope <= 0:
        return None
    aic = {
        "relu": _aic(sse, len(loss), 4),
        "line": _aic(_line(-loss, accuracy, weight)[0], len(loss), 3),
        "constant": _aic(_line(np.zeros(len(loss)), accuracy, weight)[0], len(loss), 2),
    }
    return Elbow(float(tried[best]), float(slope), float(floor), aic)


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float, float]:
    """Weighted sum of squares, slope and intercept of the best line."""
    mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = np.sum(weight * (x - mean_x) ** 2)
    slope = np.sum(weight * (x - mean_x) * (y - mean_y)) / spread if spread > 1e-15 else 0.0
    left = y - mean_y - slope * (x - mean_x)
    return float(np.sum(weight * left**2)), float(slope), float(mean_y - slope * mean_x)


def _aic(sse: float, points: int, parameters: int) -> float:
    """Of Gaussian noise of unknown size, with the correction for few points."""
    extra = 2 * parameters * (parameters + 1) / max(points - parameters - 1, 1e-3)
    return float(points * np.log(max(sse, 1e-15) / points) + 2 * parameters + extra)
