"""Curves of a run: a few dataset-level means per evaluation."""

import numpy as np

from premem_jax.analysis import premem
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace


def run_curves(
    trace: Trace, threshold: Threshold | None, train: str = "train", test: str = "test"
) -> dict[str, np.ndarray]:
    """Dataset-level means, each (M,): unweighted over the measured examples of an evaluation, NaN if there are none.

    Returns:
      `step` (int64) and `epoch`; on split `train`, `train_nll` (nats per token, mean of the examples' means),
      `train_accuracy` (NaN also where sampling was skipped for some), `pre_memorization_accuracy`,
      `fraction_memorized` and the `threshold` itself (perplexity), NaN without a threshold; on split `test`,
      `test_accuracy`. Curves of a missing split are NaN. Float64.
    """
    unknown_M = np.full(len(trace.steps), np.nan)
    names = (
        "train_nll",
        "train_accuracy",
        "pre_memorization_accuracy",
        "test_accuracy",
        "fraction_memorized",
        "threshold",
    )
    curves = {"step": trace.steps, "epoch": trace.epochs} | dict.fromkeys(names, unknown_M)
    if test in trace.splits:
        curves["test_accuracy"] = premem.measured_mean(trace.splits[test].accuracy)
    if train in trace.splits:
        seen = trace.splits[train]
        curves |= {"train_nll": premem.measured_mean(seen.nll), "train_accuracy": seen.mean_accuracy}
        if threshold is not None:
            premem_ME = premem.pre_memorization_accuracy(seen.accuracy_or_skipped, seen.nll, threshold.perplexity)
            curves["pre_memorization_accuracy"] = premem.measured_mean(premem_ME)
            curves["fraction_memorized"] = premem.fraction_memorized(seen.nll, threshold.perplexity)
            curves["threshold"] = np.exp(threshold.nll(len(trace.steps)))
    return curves
