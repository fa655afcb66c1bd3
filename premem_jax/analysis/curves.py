"""A run in a handful of numbers per evaluation."""

import numpy as np

from premem_jax.analysis import premem
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace


def run_curves(
    trace: Trace, threshold: Threshold, train: str = "train", test: str | None = "test"
) -> dict[str, np.ndarray]:
    """Dataset-level means, each (M,): unweighted over the examples measured at that evaluation, NaN where none was.

    Returns:
      `step` (int64) and `epoch`; on split `train`, `train_nll` (nats per token, mean of the examples' means),
      `train_accuracy` (NaN also where sampling was skipped for some), `pre_memorization_accuracy` and
      `fraction_memorized`; on split `test`, `test_accuracy`, all NaN when `test` is None. Float64.

    Raises:
      UserError: a split that the trace does not have.
    """
    seen = trace.split(train)
    premem_ME = premem.pre_memorization_accuracy(seen.accuracy_or_skipped, seen.nll, threshold.perplexity)
    unknown_M = np.full(len(trace.steps), np.nan)
    return {
        "step": trace.steps,
        "epoch": trace.epochs,
        "train_nll": premem.measured_mean(seen.nll),
        "train_accuracy": seen.mean_accuracy,
        "pre_memorization_accuracy": premem.measured_mean(premem_ME),
        "test_accuracy": unknown_M if test is None else premem.measured_mean(trace.split(test).accuracy),
        "fraction_memorized": premem.fraction_memorized(seen.nll, threshold.perplexity),
    }
