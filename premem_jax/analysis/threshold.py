"""The memorization threshold on target perplexity, chosen without test accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from premem_jax.analysis import premem
from premem_jax.errors import UserError

MIN_EXAMPLES = 50


@dataclass(frozen=True)
class Threshold:
    """A target perplexity below which an example counts as memorized, and the rule that gave it."""

    perplexity: float
    rule: str  # one line for people
    detail: Mapping[str, int | float | str]  # what the rule used
    looks_at_test: bool = False  # whether the rule saw test accuracy

    def __post_init__(self):
        premem.log_threshold(self.perplexity)

    @property
    def nll(self) -> float:
        """The threshold as mean NLL, nats per target token."""
        return premem.log_threshold(self.perplexity)


def given(perplexity: float) -> Threshold:
    """The threshold that the user gave."""
    return Threshold(float(perplexity), "given", {})


def heldout_quantile(nll_ME: np.ndarray, quantile: float = 0.01) -> Threshold:
    """The minimum over evaluations of the quantile of held-out NLL.

    So a solution is memorized once it is likelier than all but a share `quantile` of unseen solutions ever were. With
    few examples a quantile is noisy, and the minimum of noisy quantiles is biased low: hold out a thousand or more.

    Args:
      nll_ME: (M, E) mean target NLL of held-out examples, nats per token; NaN where not measured. Evaluations with
        fewer than 50 finite values are ignored.
      quantile: between 0 and 1, linearly interpolated.

    Raises:
      UserError: a quantile outside (0, 1), or no usable evaluation.
    """
    if not 0 < quantile < 1:
        raise UserError(f"The held-out quantile lies between 0 and 1, and {quantile} does not.")
    rows = usable(nll_ME)
    if not rows:
        most = int(np.isfinite(nll_ME).sum(axis=1).max(initial=0))
        raise UserError(
            f"The held-out quantile needs the target NLL of at least {MIN_EXAMPLES} held-out examples at some "
            f"evaluation, and there are {most} finite ones. Keep more examples aside with likelihood turned on for "
            "them, or give a perplexity."
        )
    quantiles = {m: np.quantile(nll_E, quantile) for m, nll_E in rows.items()}
    m = min(quantiles, key=quantiles.get)
    detail = {"quantile": quantile, "evaluation": m, "heldout_examples": len(rows[m])}
    rule = f"lowest {quantile:.3g} quantile of the run's held-out target NLL over its evaluations"
    return Threshold(math.exp(quantiles[m]), rule, detail)


def of_runs(nlls: Sequence[np.ndarray | None], quantile: float = 0.01) -> list[Threshold]:
    """`heldout_quantile` of each run; runs without held-out data take the lowest of these.

    Args:
      nlls: for each run of one task and model, (M, E) as above, or None.
      quantile: as above.

    Raises:
      UserError: a quantile outside (0, 1), or no run with a usable evaluation.
    """
    own = [heldout_quantile(nll_ME, quantile) if usable(nll_ME) else None for nll_ME in nlls]
    if not any(own):
        raise UserError(
            f"The threshold is taken from held-out examples, and no run has the target NLL of at least {MIN_EXAMPLES} "
            "at some evaluation. Add some (split 'heldout'), or set threshold.rule=given and threshold.perplexity."
        )
    lowest = min(chosen.perplexity for chosen in own if chosen)
    other = Threshold(lowest, "for runs with nothing held out, the lowest threshold of the others", {})
    return [chosen or other for chosen in own]


def usable(nll_ME: np.ndarray | None) -> dict[int, np.ndarray]:
    """The evaluations with at least 50 finite values, and these values; none if `nll_ME` is None."""
    nll_ME = np.asarray([] if nll_ME is None else nll_ME, np.float64)
    rows = {m: nll_E[np.isfinite(nll_E)] for m, nll_E in enumerate(nll_ME)}
    return {m: nll_E for m, nll_E in rows.items() if len(nll_E) >= MIN_EXAMPLES}
