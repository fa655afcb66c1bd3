"""Likelihood: how well is each example's reference solution memorized?"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from premem_jax import sharding
from premem_jax.data.pipeline import evaluation_batches
from premem_jax.evaluators.base import Context
from premem_jax.programs import Program
from premem_jax.scoring.likelihood import target_nll


class Likelihood:
    """Mean NLL and token count of each example's target, in fp32, with the parameters as they are trained."""

    phase, layout = "score", "train"

    def __init__(self, context: Context, *, batch: int):
        self._context, self._batch = context, batch
        self._program = Program(partial(target_nll, context.model), context.clock)

    def run(self, params, step: int, progress, only: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`target_nll` and `target_tokens`, row e being example e of the split; zero for rows outside `only`."""
        data = self._context.data
        out = {"target_nll": np.zeros(len(data), np.float32), "target_tokens": np.zeros(len(data), np.int32)}
        for rows, arrays in evaluation_batches(data, batch=self._batch, buckets=self._context.buckets, only=only):
            arrays = sharding.put_batch(self._context.mesh, arrays)
            nll, count = self._program(params, arrays["tokens"], arrays["weights"])
            out["target_nll"][rows] = np.asarray(nll)[: len(rows)]
            out["target_tokens"][rows] = np.asarray(count)[: len(rows)]
            progress(len(rows))
        return out
