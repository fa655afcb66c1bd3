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


def heldout_quantile(nll_ME: np.ndarray, quantile: float = 0.01) -> Threshold:
    """A solution is memorized once it is likelier than all but `quantile` of the unseen ones were at any time.

    At each evaluation of the run takes the quantile of its held-out examples' NLL, and of these the lowest. A quantile
    of few examples is unsure, and the lowest of several lies low: keep a thousand examples aside, or more.

    Args:
      nll_ME: (M, E) mean target NLL, nats per token, of examples that the run is not trained on; NaN where not
        measured. Evaluations with fewer than 50 finite values do not count.
      quantile: between 0 and 1, linear between the two examples next to it.

    Raises:
      UserError: a quantile outside (0, 1), or no evaluation that counts.
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
    """`heldout_quantile` of each run, and the lowest of these for the runs that have not what it takes.

    Args:
      nlls: of each run of one task and model, (M, E) as above, or None.
      quantile: as above.

    Raises:
      UserError: a quantile outside (0, 1), or no run with an evaluation that counts.
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
    """The evaluations with at least 50 finite values, and these values; none of None."""
    nll_ME = np.asarray([] if nll_ME is None else nll_ME, np.float64)
    rows = {m: nll_E[np.isfinite(nll_E)] for m, nll_E in enumerate(nll_ME)}
    return {m: nll_E for m, nll_E in rows.items() if len(nll_E) >= MIN_EXAMPLES}
