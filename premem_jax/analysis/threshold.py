"""Which target perplexity counts as memorized, chosen without a look at test accuracy."""

import math
from collections.abc import Mapping, Sequence
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
    detail: Mapping[str, int | float | str]  # what the rule used

    def __post_init__(self):
        premem.log_threshold(self.perplexity)

    @property
    def nll(self) -> float:
        """The same threshold as mean nats per target token."""
        return premem.log_threshold(self.perplexity)


def given(perplexity: float) -> Threshold:
    """The threshold that the user named."""
    return Threshold(float(perplexity), "given", {})


def heldout_quantile(nlls: Sequence[np.ndarray], quantile: float = 0.01) -> Threshold:
    """A solution is memorized once it is likelier than all but `quantile` of the solutions never trained on.

    Of all evaluations of all runs, takes the one with the lowest mean NLL over its held-out examples (later ones rise
    again as a run overfits), and there the quantile of the examples' NLL. On the released GSM8K and our arithmetic runs
    the first percentile falls on the thresholds that were tuned on test accuracy. A run whose learning rate harms the
    model has a high held-out NLL throughout, and alone gives a threshold too high.

    Args:
      nlls: of each run of one task and model, (M, E) mean target NLL, nats per token, of examples that it is not
        trained on; NaN where not measured. One run, or a sweep.
      quantile: between 0 and 1, linear between the two examples next to it.

    Raises:
      UserError: a quantile outside (0, 1), no finite value, or fewer than 50 examples at the chosen evaluation.
    """
    if not 0 < quantile < 1:
        raise UserError(f"The held-out quantile lies between 0 and 1, and {quantile} does not.")
    nll_E, run, evaluation = reference(nlls)
    detail = {
        "quantile": quantile,
        **({"run": run} if len(nlls) > 1 else {}),
        "evaluation": evaluation,
        "heldout_mean_nll": float(np.mean(nll_E)),
        "heldout_examples": len(nll_E),
    }
    rule = f"{quantile:.3g} quantile of the held-out target NLL where its mean is lowest"
    return Threshold(math.exp(np.quantile(nll_E, quantile)), rule, detail)


def reference(nlls: Sequence[np.ndarray]) -> tuple[np.ndarray, int, int]:
    """The held-out NLL at the evaluation with the lowest mean, of all runs: the values (E,), the run, the evaluation.

    Raises:
      UserError: no finite value, or fewer than 50 examples there.
    """
    means = [premem.measured_mean(np.asarray(nll_ME, np.float64)) for nll_ME in nlls]
    lowest = [np.where(np.isfinite(mean_M), mean_M, np.inf).min(initial=np.inf) for mean_M in means]
    if not np.isfinite(lowest).any():
        raise UserError(
            "No evaluation has a finite target NLL on the held-out examples, so there is no threshold to take from "
            "them. Turn on likelihood for the held-out split, or give a perplexity."
        )
    run = int(np.argmin(lowest))
    evaluation = int(np.flatnonzero(means[run] == lowest[run])[0])
    nll_E = np.asarray(nlls[run], np.float64)[evaluation]
    nll_E = nll_E[~np.isnan(nll_E)]
    if len(nll_E) < MIN_EXAMPLES:
        raise UserError(
            f"The held-out quantile needs at least {MIN_EXAMPLES} held-out examples, and there are {len(nll_E)}. "
            "Keep more examples aside, or give a perplexity."
        )
    return nll_E, run, evaluation
