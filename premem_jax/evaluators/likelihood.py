"""Likelihood: how well is each example's reference solution memorized?"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from premem_jax import sharding
from premem_jax.data.pipeline import evaluation_batches
from premem_jax.evaluators.base import Context, Part
from premem_jax.programs import Program
from premem_jax.scoring.likelihood import target_nll


class Likelihood:
    """Mean NLL and token count of each example's target, in fp32, with the parameters as they are trained."""

    phase, layout = "score", "train"

    def __init__(self, context: Context, *, batch: int):
        self._context, self._batch = context, batch
        everywhere = sharding.replicated(context.mesh)
        self._program = Program(partial(target_nll, context.model), context.clock, out_shardings=everywhere)

    def run(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """`target_nll` and `target_tokens` of the rows of `only` (all), batch by batch."""
        context, size = self._context, self._batch
        here = sharding.rows_here(context.mesh, size)
        for rows, arrays in evaluation_batches(context.data, batch=size, buckets=context.buckets, only=only, here=here):
            arrays = sharding.put_batch(context.mesh, arrays, size)
            nll, count = (
                np.asarray(x)[: len(rows)] for x in self._program(params, arrays["tokens"], arrays["weights"])
            )
            yield Part(rows, {"target_nll": nll, "target_tokens": count})
