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

from premem_jax.models.decoder import Model
from premem_jax.models.nll import token_nll


class LossSum(NamedTuple):
    """Sums over one micro-batch, fp32 scalars. Divided by `count` they are the loss and its metrics."""

    total: jax.Array
    count: jax.Array
    metrics: Mapping[str, jax.Array] = {}


class Loss(Protocol):
    """`keys`: the batch arrays it needs, each with a leading axis B. `unit`: name of `count` in the metrics."""

    keys: tuple[str, ...]
    unit: ClassVar[str]

    def __call__(self, model: Model, params, batch: Mapping[str, jax.Array]) -> LossSum: ...


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Weighted next-token negative log-likelihood, for supervised finetuning and base models.

    A batch has `tokens` (B, T) int32 and `weights` (B, T) fp32, the weight of each token as a target.
    """

    keys: ClassVar[tuple[str, ...]] = ("tokens", "weights")
    unit: ClassVar[str] = "tokens"

    def __call__(self, model: Model, params, batch: Mapping[str, jax.Array]) -> LossSum:
        nll_BT = token_nll(model, params, batch["tokens"])
        return LossSum(jnp.sum(nll_BT * batch["weights"]), jnp.sum(batch["weights"]))


NEXT_TOKEN = NextToken()
