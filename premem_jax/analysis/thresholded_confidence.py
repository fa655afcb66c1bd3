"""Average thresholded confidence: the share of examples with a confidence above a threshold.

Garg et al. (arXiv 2201.04234) choose the threshold so that the share equals a known accuracy. Kang et al.
(arXiv 2411.07681, development code) take it from the test accuracy of one run and apply it to the others.
"""

from collections.abc import Sequence

import numpy as np

from premem_jax.analysis.runs import Run


def average_thresholded_confidence(runs: Sequence[Run]) -> list[np.ndarray]:
    """Predicted accuracy (M,) of each run, from log-confidences on its training examples; NaN where not measured.

    The threshold of a run is the median of the other runs' own thresholds. So it uses test accuracy, but not that of
    the run that is scored. All NaN without another run.
    """
    own = np.array([own_threshold(run) for run in runs])
    predicted = []
    for i, run in enumerate(runs):
        others = np.delete(own, i)
        others = others[np.isfinite(others)]
        predicted.append(_share_above(run, float(np.median(others)) if len(others) else np.nan))
    return predicted


def own_threshold(run: Run) -> float:
    """The log-confidence at which the share of training examples above it equals the test accuracy.

    At the last evaluation that measured both; NaN if there is none.
    """
    confidence_ME = run.train.log_confidence
    if confidence_ME is None:
        return np.nan
    both = np.flatnonzero(np.isfinite(confidence_ME).any(axis=1) & np.isfinite(run.test_accuracy))
    if not len(both):
        return np.nan
    return float(np.nanquantile(confidence_ME[both[-1]], 1 - run.test_accuracy[both[-1]]))


def _share_above(run: Run, threshold: float) -> np.ndarray:
    confidence_ME = run.train.log_confidence
    if confidence_ME is None or np.isnan(threshold):
        return np.full(len(run.trace.steps), np.nan)
    known_ME = np.isfinite(confidence_ME)
    count_M = known_ME.sum(axis=1)
    above_M = np.sum(confidence_ME > threshold, axis=1)
    return np.divide(above_M, count_M, out=np.full(len(count_M), np.nan), where=count_M > 0)
