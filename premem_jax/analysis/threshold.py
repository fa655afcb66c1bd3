"""Which target perplexity counts as memorized, chosen without a look at test accuracy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from premem_jax.analysis import premem
from premem_jax.errors import UserError

MIN_EXAMPLES = 50


@dataclass(frozen=True)
class Threshold:
    """A target perplexity below which an example counts as memorized, and where it comes from."""

    perplexity: float
    rule: str  # one line for people
    detail: Mapping[str, int | float]  # the numbers the rule used

    def __post_init__(self):
        premem.log_threshold(self.perplexity)

    @property
    def nll(self) -> float:
        """The same threshold as mean nats per target token."""
        return premem.log_threshold(self.perplexity)


def given(perplexity: float) -> Threshold:
    """The threshold that the user named."""
    return Threshold(float(perplexity), "given", {})


def heldout_quantile(nll_ME: np.ndarray, quantile: float = 0.01) -> Threshold:
    """A solution is memorized once it is likelier than all but `quantile` of the solutions never trained on.

    Takes the evaluation with the lowest mean NLL over the held-out examples (later ones rise again as the run
    overfits) and there the quantile of the examples' NLL. On the released GSM8K and our arithmetic runs the first
    percentile falls on the thresholds that were tuned on test accuracy. A run whose learning rate harms the model has a
    high held-out NLL throughout and gives a threshold too high: in a sweep, use the run with the lowest held-out mean.

    Args:
      nll_ME: (M, E) mean target NLL, nats per token, of examples that are not trained on; NaN where not measured.
      quantile: between 0 and 1, linear between the two examples next to it.

    Raises:
      UserError: a quantile outside (0, 1), no finite value, or fewer than 50 examples at the chosen evaluation.
    """
    if not 0 < quantile < 1:
        raise UserError(f"The held-out quantile lies between 0 and 1, and {quantile} does not.")
    nll_ME = np.asarray(nll_ME, np.float64)
    mean_M = premem.measured_mean(nll_ME)
    if not np.isfinite(mean_M).any():
        raise UserError(
            "No evaluation has a finite target NLL on the held-out examples, so there is no threshold to take from "
            "them. Turn on likelihood for the held-out split, or give a perplexity."
        )
    best = int(np.argmin(np.where(np.isfinite(mean_M), mean_M, np.inf)))
    nll_E = nll_ME[best][~np.isnan(nll_ME[best])]
    if len(nll_E) < MIN_EXAMPLES:
        raise UserError(
            f"The held-out quantile needs at least {MIN_EXAMPLES} held-out examples, and there are {len(nll_E)}. "
            "Keep more examples aside, or give a perplexity."
        )
    detail = {
        "quantile": quantile,
        "evaluation": best,
        "heldout_mean_nll": mean_M[best],
        "heldout_examples": len(nll_E),
    }
    rule = f"{quantile:.3g} quantile of the held-out target NLL where its mean is lowest"
    return Threshold(math.exp(np.quantile(nll_E, quantile)), rule, detail)
