"""Gradient variance: how far do the gradients of batches of examples differ from one another?"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from premem_jax import sharding
from premem_jax.data.pipeline import collate, pad_to
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Context, Part
from premem_jax.models.decoder import Model
from premem_jax.programs import Program
from premem_jax.training.step import loss_gradient


def start(params) -> tuple:
    """Count, mean gradient and sum of squared deviations, of no gradient yet."""
    return jnp.float32(0), jax.tree.map(jnp.zeros_like, params), jnp.float32(0)


def add(model: Model, micro_batches: int, seen: tuple, params, batch: dict) -> tuple:
    """`seen` with the gradient of one more batch: Welford's update (Technometrics 4(3), 1962).

    The deviations are summed over all parameters at once. So one mean of their size is kept, beside the gradient, and
    no difference of large sums is taken.
    """
    count, mean, squares = seen
    _, gradient = loss_gradient(model, params, batch, micro_batches)
    deviation = jax.tree.map(lambda g, m: g - m, gradient, mean)
    mean = jax.tree.map(lambda m, d: m + d / (count + 1), mean, deviation)
    square = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(deviation))
    return count + 1, mean, squares + square * count / (count + 1)


class GradientVariance:
    """The variance over `batches` gradients, each of the mean loss of `batch` examples, averaged over all parameters.

    Of the first examples of the split; fewer batches where it has fewer. `batch=1` is the variance over examples. The
    baseline of Kang et al. (arXiv 2411.07681, development code) has 5 batches of 128.
    """

    phase, layout = "gradient", "train"

    def __init__(self, context: Context, *, batch: int, batches: int, micro_batches: int):
        """Raises UserError where the split has less than two batches."""
        self._context, self._batch = context, batch
        batches = min(batches, len(context.data) // batch)
        if batches < 2:
            raise UserError(
                f"gradient_variance: there is no variance of {batches} gradients; split {context.split!r} has "
                f"{len(context.data)} examples, so lower its batch={batch}, or raise its batches"
            )
        self.examples = batches * batch
        self._micro_batches = micro_batches
        self._length = pad_to(context.data.lengths[: self.examples].max(), context.buckets)
        self._programs = None

    def run(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Nothing per example; at the end the measure `gradient_variance`, of all batches whatever `only` says."""
        begin, update = self._compiled(params)
        context, size, seen = self._context, self._batch, begin(params)
        here = sharding.rows_here(context.mesh, size)
        for first in range(0, self.examples, size):
            rows = range(first, first + size)
            batch = collate(context.data, rows, batch=size, length=self._length, here=here)
            arrays = sharding.put_batch(context.mesh, {key: batch[key] for key in ("tokens", "weights")}, size)
            seen = update(seen, params, arrays)
            yield Part(rows)
        count, _, squares = seen
        variance = float(squares) / (float(count) - 1)
        yield Part((), measures={"gradient_variance": variance / context.model.config.parameters})

    def _compiled(self, params) -> tuple[Program, Program]:
        if self._programs is None:
            context = self._context
            scalar = sharding.replicated(context.mesh)
            layout = scalar, sharding.shardings(context.mesh, params), scalar
            update = partial(add, context.model, self._micro_batches)
            self._programs = (
                Program(partial(start), context.clock, out_shardings=layout),
                Program(update, context.clock, out_shardings=layout, donate_argnums=0),
            )
        return self._programs
