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

    perplexity: float | np.ndarray  # one, or (M,), one for each evaluation
    rule: str  # one line for people
    detail: Mapping[str, int | float | str]  # what the rule used
    looks_at_test: bool = False  # whether the rule saw test accuracy

    def __post_init__(self):
        premem.log_threshold(self.perplexity)

    @property
    def at_end(self) -> float:
        """The perplexity at the last evaluation, to show as one number."""
        return float(np.ravel(self.perplexity)[-1])

    def nll(self, evaluations: int) -> np.ndarray:
        """(M,) the threshold at each evaluation as mean NLL, nats per target token."""
        return np.broadcast_to(np.ravel(premem.log_threshold(self.perplexity)), evaluations)

    def __str__(self) -> str:
        """The perplexity, or its range over the evaluations, to four digits."""
        low, high = (f"{value:.4f}" for value in (np.min(self.perplexity), np.max(self.perplexity)))
        return low if low == high else f"{low} to {high}"


def given(perplexity: float) -> Threshold:
    """The threshold that the user gave."""
    return Threshold(float(perplexity), "given", {})


def heldout_quantile(nll_ME: np.ndarray, quantile: float = 0.01) -> Threshold:
    """At each evaluation, the quantile of the held-out NLL there.

    So a solution is memorized while it is likelier than all but a share `quantile` of solutions that the model has not
    seen. The threshold of an evaluation never changes afterwards: one without held-out values keeps that of the
    evaluation before. (Evaluations before the first held-out values take the first threshold.)

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
    perplexity_M = np.exp(kept({m: np.quantile(nll_E, quantile) for m, nll_E in rows.items()}, len(nll_ME)))
    detail = {"quantile": quantile, "heldout_examples": min(map(len, rows.values()))}
    return Threshold(perplexity_M, f"at each evaluation, the {quantile:.3g} quantile of the held-out NLL there", detail)


def of_runs(nlls: Sequence[np.ndarray | None], quantile: float = 0.01) -> list[Threshold]:
    """`heldout_quantile` of each run; `reference` for runs without held-out data.

    Args:
      nlls: for each run of one task and model, (M, E) as above, or None.
      quantile: as above.

    Raises:
      UserError: a quantile outside (0, 1), or no run with a usable evaluation.
    """
    own = [heldout_quantile(nll_ME, quantile) if nll_ME is not None and usable(nll_ME) else None for nll_ME in nlls]
    if not any(own):
        raise UserError(
            f"The threshold is taken from held-out examples, and no run has the target NLL of at least {MIN_EXAMPLES} "
            "at some evaluation. Add some (split 'heldout'), or set threshold.rule=given and threshold.perplexity."
        )
    rule = "for runs with nothing held out, the same at the evaluation of the other runs with the lowest held-out mean"
    other = Threshold(math.exp(reference(nlls, quantile)), rule, {})
    return [chosen or other for chosen in own]


def reference(nlls: Sequence[np.ndarray | None], quantile: float) -> float:
    """The quantile (mean NLL) at that evaluation of all runs at which the mean held-out NLL is lowest."""
    rows = [nll_E for nll_ME in nlls for nll_E in usable(nll_ME).values()]
    return float(np.quantile(min(rows, key=np.mean), quantile))


def usable(nll_ME: np.ndarray | None) -> dict[int, np.ndarray]:
    """The evaluations with at least 50 finite values, and these values; none if `nll_ME` is None."""
    nll_ME = np.asarray([] if nll_ME is None else nll_ME, np.float64)
    rows = {m: nll_E[np.isfinite(nll_E)] for m, nll_E in enumerate(nll_ME)}
    return {m: nll_E for m, nll_E in rows.items() if len(nll_E) >= MIN_EXAMPLES}


def kept(values: Mapping[int, float], evaluations: int) -> np.ndarray:
    """(M,) the value of each evaluation, or else of the last one before it, or else of the first."""
    before_M = np.searchsorted(list(values), np.arange(evaluations), side="right") - 1
    return np.array(list(values.values()))[np.maximum(before_M, 0)]
