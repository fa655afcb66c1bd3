"""Training losses.

A loss maps (model, parameters, micro-batch) to a sum, a count and sums of metrics. The update adds these over the
micro-batches and divides once, so accumulation equals the big batch. A loss names the batch keys it needs and the unit
it counts; step and loop know neither.

Losses are frozen dataclasses: two with equal settings are equal, so they share compiled programs.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.models.decoder import Model
from premem_jax.models.nll import token_nll


class LossSum(NamedTuple):
    """Sums over one micro-batch, fp32 scalars. Divided by `count` they are the loss and its metrics."""

    total: jax.Array
    count: jax.Array
    metrics: Mapping[str, jax.Array] = {}


class Loss(Protocol):
    """`keys`: the batch arrays it takes, each divisible along its first axis. `unit`: name of `count` in the metrics.

    `segments` is missing from batches whose rows hold one sequence each.
    """

    keys: tuple[str, ...]
    unit: ClassVar[str]

    def __call__(self, model: Model, params, batch: Mapping[str, jax.Array]) -> LossSum: ...


def needed(loss: Loss, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a batch that the loss takes."""
    return {key: batch[key] for key in loss.keys if key in batch or key != "segments"}


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Weighted next-token negative log-likelihood, for supervised finetuning and base models.

    A batch has `tokens` (X, T) int32, `weights` (X, T) fp32, the weight of each token as a target, and `segments`
    (X, T) int32 if sequences share rows, see `token_nll`.
    """

    keys: ClassVar[tuple[str, ...]] = ("tokens", "weights", "segments")
    unit: ClassVar[str] = "tokens"

    def __call__(self, model: Model, params, batch: Mapping[str, jax.Array]) -> LossSum:
        nll_XT = token_nll(model, params, batch["tokens"], batch.get("segments"))
        return LossSum(jnp.sum(nll_XT * batch["weights"]), jnp.sum(batch["weights"]))


NEXT_TOKEN = NextToken()
