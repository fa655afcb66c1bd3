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


def conclude(trace: Trace, *, split: str, **rule) -> Conclusion:
    """The conclusion of a trace by a threshold rule: `split` has the held-out examples, `rule` is as below."""
    chosen = threshold_of(trace.splits[split].nll if split in trace.splits else None, **rule)
    return Conclusion(chosen, run_curves(trace, chosen))


def threshold_of(
    heldout_nll_ME: np.ndarray | None, *, rule: str, quantile: float, perplexity: float, split: str = ""
) -> Threshold | None:
    """The threshold by the settings of a config; None where the rule, or the data, gives none.

    Args:
      heldout_nll_ME: (M, E) target NLL of held-out examples up to now, nats per token; None if there are none.
      rule: `heldout_quantile` takes the threshold from these; `given` takes `perplexity`; with `none` there is no
        threshold, and the metric is not computed.
      quantile, perplexity: what these rules take.
      split: where the held-out examples are; not used here.
    """
    if rule == "given":
        return threshold.given(perplexity)
    if rule == "heldout_quantile" and heldout_nll_ME is not None and threshold.usable(heldout_nll_ME):
        return threshold.heldout_quantile(heldout_nll_ME, quantile)
    return None
