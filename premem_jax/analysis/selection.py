"""Strategies of curation: each gives training examples weights, and new examples are allocated in proportion.

Kang et al. (arXiv 2411.07681, Algorithm 1) give equal weights to the examples with a pre-memorization accuracy below t.
Other strategies rank examples by other values; `share` selects a share instead of a threshold.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from premem_jax.analysis import estimate
from premem_jax.analysis.premem import log_threshold, pre_memorization_accuracy
from premem_jax.analysis.trace import Trace
from premem_jax.errors import UserError

ROUNDING = 1e-9  # shares closer than this to a whole number are one


@dataclass(frozen=True)
class Seen:
    """Inputs of a strategy: E training examples, in the order of `example`."""

    trace: Trace  # of a run trained on them
    perplexity: float | np.ndarray | None = None  # the memorization threshold, or (M,), one per evaluation
    share: float = 0.5  # of the examples is collected around, those with the lowest value...
    below: float | None = None  # ...or all those with a value below this, where it is given
    seed: int = 0
    round: int = 0
    difficulty: np.ndarray | None = None  # (E,) given by the task; higher is harder
    kinds: np.ndarray | None = None  # (E,) the type of each example
    error: Mapping[str, float] = field(default_factory=dict)  # type to the error on test questions of it

    @property
    def example(self) -> np.ndarray:
        """Example ids (E,)."""
        return self.trace.split("train").example


def pre_memorization(seen: Seen) -> np.ndarray:
    """The shrunk value. For examples memorized at the first evaluation of training, the accuracy there.

    These have no evaluation before memorization, so the published value is 0 for all of them.
    """
    return _low(seen, _shrunk(seen))


def pre_memorization_published(seen: Seen) -> np.ndarray:
    """The value as Kang et al. compute it."""
    train = seen.trace.split("train")
    return _low(seen, pre_memorization_accuracy(train.accuracy_or_skipped, train.nll, _threshold(seen))[-1])


def early_accuracy(seen: Seen) -> np.ndarray:
    """The accuracy at the first evaluation of training."""
    return _low(seen, _early(seen))


def high_nll(seen: Seen) -> np.ndarray:
    """The share of examples with the highest target NLL at the first evaluation of training."""
    return _lowest(seen, -seen.trace.split("train").nll[_first(seen)])


def learnability(seen: Seen) -> np.ndarray:
    """p (1 - p), where p is the measured accuracy at the first evaluation of training."""
    p_E = _early(seen)
    return p_E * (1 - p_E)


def difficulty(seen: Seen) -> np.ndarray:
    """The hardest share by the task's own difficulty. Raises UserError if the task has none."""
    if seen.difficulty is None:
        raise UserError("strategy 'difficulty': the task gives its examples no difficulty; choose another strategy")
    return _lowest(seen, -seen.difficulty)


def ifd(seen: Seen) -> np.ndarray:
    """Instruction-following difficulty (arXiv 2308.12032): perplexity of the target with the prompt over that without.

    At the first evaluation of training, after few passes over the task. The highest share of those up to 1; where the
    prompt makes the target less likely, it does not fit.
    """
    first, alone = _first(seen), seen.trace.splits.get("train alone")
    if alone is None or np.isnan(alone.nll[first]).any():
        raise UserError(
            "strategy 'ifd' needs the NLL of targets without their prompts; add a likelihood evaluator of the split "
            "'train' with alone=True, at the same evaluations as the others"
        )
    ratio_E = np.exp(seen.trace.split("train").nll[first] - alone.nll[first])
    if not np.any(ratio_E <= 1):
        raise UserError("strategy 'ifd': every ratio is above 1, so nothing is left to collect around")
    return _lowest(seen, np.where(ratio_E <= 1, -ratio_E, np.nan))


def iid(seen: Seen) -> np.ndarray:
    """Equal weights."""
    return np.ones(len(seen.example))


def random(seen: Seen) -> np.ndarray:
    """A random share of the examples: as few originals as a strategy selects, without its selection."""
    return _lowest(seen, np.zeros(len(seen.example)))


def oracle(seen: Seen) -> np.ndarray:
    """The test error on questions of the example's type: an upper bound, unknown outside a study."""
    if seen.kinds is None or not seen.error:
        raise UserError("strategy 'oracle': the task has no types with errors of their own; choose another strategy")
    return np.array([seen.error.get(kind, 0.0) for kind in seen.kinds])


STRATEGIES: dict[str, Callable[[Seen], np.ndarray]] = {
    function.__name__: function
    for function in (
        pre_memorization,
        pre_memorization_published,
        early_accuracy,
        high_nll,
        learnability,
        difficulty,
        ifd,
        iid,
        random,
        oracle,
    )
}


def allocate(
    weights_E: np.ndarray, example_E: np.ndarray, total: int, *, seed: int, round: int, most_E: np.ndarray | None = None
) -> np.ndarray:
    """Number of new examples of each original (E,): `total` allocated in proportion to the weights.

    Systematic sampling: each count is the proportional share rounded down or up, with the share as its mean over seeds.
    It is a function of seed, round, ids and weights; the order of the rows does not matter.

    Args:
      weights_E: (E,) at least 0; an example of weight 0 gets none.
      most_E: (E,) upper limits; the excess goes to the others in proportion.

    Raises:
      UserError: all weights are 0, or the limits of the others add up to less than `total`.
    """
    if not np.any(weights_E > 0):
        raise UserError("no example is selected: raise the share or the threshold of the strategy")
    most_E = np.full(len(weights_E), total) if most_E is None else np.minimum(most_E, total)
    if (there := int(most_E[weights_E > 0].sum())) < total:
        raise UserError(f"{total} new examples are wanted, and the selected ones have {there}; ask for fewer")
    share_E = _shares(weights_E, most_E, total)
    count_E = np.floor(share_E + ROUNDING).astype(np.int64)
    rest_E = np.where(share_E - count_E > ROUNDING, share_E - count_E, 0.0)
    left = total - int(count_E.sum())
    if left:
        order = np.argsort(_chance(example_E, seed, round), kind="stable")
        order = order[rest_E[order] > 0]
        edges = np.concatenate([[0.0], np.cumsum(rest_E[order])])
        offset = _chance(np.array([-1]), seed, round)[0]
        # An original gets one more for each of the points offset, offset + 1, ... in its interval.
        count_E[order] += np.diff(np.ceil(edges * (left / edges[-1]) - offset).astype(np.int64))
    return count_E


def _shares(weights_E: np.ndarray, most_E: np.ndarray, total: int) -> np.ndarray:
    """`total` in proportion to the weights, at most `most_E` each."""
    full_E = np.zeros(len(weights_E), bool)
    while True:
        free_E = ~full_E
        left = total - most_E[full_E].sum()
        weight = weights_E[free_E].sum()
        share_E = np.where(full_E, most_E, left * weights_E / weight if weight > 0 else 0.0)
        over_E = free_E & (share_E > most_E)
        if not over_E.any():
            return share_E
        full_E |= over_E


def values(seen: Seen) -> dict[str, np.ndarray]:
    """Values (E,) to record beside a choice: the first accuracy, and with a threshold the metric."""
    train, out = seen.trace.split("train"), {"early_accuracy": _early(seen)}
    if seen.perplexity is not None:
        out["published"] = pre_memorization_accuracy(train.accuracy_or_skipped, train.nll, seen.perplexity)[-1]
        out["shrunk"] = _shrunk(seen)
    return out


def _shrunk(seen: Seen) -> np.ndarray:
    train, perplexity = seen.trace.split("train"), _threshold(seen)
    at_once_E = (train.nll < log_threshold(perplexity))[_first(seen)]
    return np.where(at_once_E, _early(seen), estimate.of_split(train, perplexity)[-1])


def _low(seen: Seen, value_E: np.ndarray) -> np.ndarray:
    """1 for the examples with a value below the threshold; without a threshold, for the lowest share."""
    return _lowest(seen, value_E) if seen.below is None else (value_E < seen.below).astype(np.float64)


def _lowest(seen: Seen, value_E: np.ndarray) -> np.ndarray:
    """1 for the share of examples with the lowest values; ties are broken at random, NaN is never taken."""
    known = np.flatnonzero(~np.isnan(value_E))
    count = min(len(known), max(1, round(seen.share * len(value_E))))
    chance_E = _chance(seen.example, seen.seed, seen.round)
    order = known[np.lexsort((chance_E[known], value_E[known]))]
    weights_E = np.zeros(len(value_E))
    weights_E[order[:count]] = 1
    return weights_E


def _chance(example_E: np.ndarray, seed: int, round: int) -> np.ndarray:
    """Pseudorandom numbers (E,) in [0, 1), each a function of seed, round and id."""
    digest = lambda id: hashlib.blake2b(f"{seed} {round} {id}".encode(), digest_size=8).digest()
    return np.array([int.from_bytes(digest(int(id))[:6]) / 2**48 for id in example_E])


def _first(seen: Seen) -> int:
    """The first evaluation of training with samples and likelihood."""
    train = seen.trace.split("train")
    whole = (train.samples > 0).any(axis=1) & np.isfinite(train.nll).any(axis=1) & (seen.trace.steps > 0)
    if not whole.any():
        raise UserError("the run has no evaluation with likelihood and samples of its training examples")
    return int(np.flatnonzero(whole)[0])


def _early(seen: Seen) -> np.ndarray:
    """(E,) shrunk accuracies at that evaluation."""
    train, first = seen.trace.split("train"), _first(seen)
    limit = -np.inf if seen.perplexity is None else log_threshold(seen.perplexity)
    return estimate.shrunk_accuracy(train.correct, train.samples, train.nll < limit)[first]


def _threshold(seen: Seen) -> float | np.ndarray:
    if seen.perplexity is None:
        raise UserError("pre-memorization accuracy needs a threshold: set threshold.rule")
    return seen.perplexity
