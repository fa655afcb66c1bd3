"""The conclusion of a run from its own trace: a threshold, and the pre-memorization accuracy if the trace allows it.

A run without samples, likelihoods or held-out examples has fewer curves; nothing else changes.
"""

from typing import NamedTuple

import numpy as np

from premem_jax.analysis import threshold
from premem_jax.analysis.curves import run_curves
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace

RULES = ("heldout_quantile", "given", "none")


class Conclusion(NamedTuple):
    """The memorization threshold, or None, and the curves of `run_curves`."""

    threshold: Threshold | None
    curves: dict[str, np.ndarray]


def conclude(trace: Trace, *, rule: str, split: str, quantile: float, perplexity: float) -> Conclusion:
    """The conclusion of a trace by a threshold rule.

    Args:
      rule: `heldout_quantile` takes the threshold from the likelihood of `split`; `given` takes `perplexity`; with
        `none` there is no threshold, and the metric is not computed.
      split, quantile, perplexity: what these rules take.
    """
    chosen = None
    if rule == "given":
        chosen = threshold.given(perplexity)
    elif rule == "heldout_quantile" and split in trace.splits and threshold.usable(trace.splits[split].nll):
        chosen = threshold.heldout_quantile(trace.splits[split].nll, quantile)
    return Conclusion(chosen, run_curves(trace, chosen))
