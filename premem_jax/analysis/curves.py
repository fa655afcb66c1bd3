"""Curves of a run: a few dataset-level means per evaluation."""

import numpy as np

from premem_jax.analysis import estimate, premem
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace

NAMES = (
    "train_nll",
    "train_accuracy",
    "estimate",
    "pre_memorization_accuracy",
    "test_accuracy",
    "fraction_memorized",
    "threshold",
)
PREDICTIONS = ("estimate", "pre_memorization_accuracy")
HALF = 1.96  # standard errors in half of a 95 % interval
INTERVALS = (*PREDICTIONS, "test_accuracy")  # those with a standard error, `NAME_error`


def run_curves(
    trace: Trace, threshold: Threshold | None, train: str = "train", test: str = "test"
) -> dict[str, np.ndarray]:
    """Dataset-level means, each (M,): unweighted over the measured examples of an evaluation, NaN if there are none.

    Returns:
      `step` (int64) and `epoch`; on split `train`, `train_nll` (nats per token, mean of the examples' means),
      `train_accuracy` (NaN also where sampling was skipped for some), `pre_memorization_accuracy` as published, its
      shrunk `estimate`, `fraction_memorized` and the `threshold` itself (perplexity), NaN without a threshold; on
      split `test`, `test_accuracy`. Curves of a missing split are NaN. The standard errors over examples of accuracies
      that are compared, `NAME_error`; that of the estimate is of the published values. Float64.
    """
    errors = [f"{name}_error" for name in INTERVALS]
    unknown = dict.fromkeys([*NAMES, *errors], np.full(len(trace.steps), np.nan))
    curves = {"step": trace.steps, "epoch": trace.epochs} | unknown
    if test in trace.splits:
        accuracy_ME = trace.splits[test].accuracy
        curves["test_accuracy"] = premem.measured_mean(accuracy_ME)
        curves["test_accuracy_error"] = premem.standard_error(accuracy_ME)
    if train in trace.splits:
        seen = trace.splits[train]
        curves |= {"train_nll": premem.measured_mean(seen.nll), "train_accuracy": seen.mean_accuracy}
        if threshold is not None:
            premem_ME = premem.pre_memorization_accuracy(seen.accuracy_or_skipped, seen.nll, threshold.perplexity)
            curves["pre_memorization_accuracy"] = premem.measured_mean(premem_ME)
            curves["estimate"] = premem.measured_mean(estimate.of_split(seen, threshold.perplexity))
            curves |= dict.fromkeys([f"{name}_error" for name in PREDICTIONS], premem.standard_error(premem_ME))
            curves["fraction_memorized"] = premem.fraction_memorized(seen.nll, threshold.perplexity)
            curves["threshold"] = np.exp(threshold.nll(len(trace.steps)))
    return curves


def interval(value: float, error: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy with this standard error, by the normal distribution; within 0 to 1."""
    return max(0.0, value - HALF * error), min(1.0, value + HALF * error)
