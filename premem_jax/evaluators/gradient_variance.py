"""Gradient variance over batches of examples."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from premem_jax.data.packing import pad_to
from premem_jax.data.pipeline import collate
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Evaluator, Part
from premem_jax.limits import ROWS, integer


class GradientVariance(Evaluator):
    """Variance over `batches` gradients of the mean loss of `batch` examples, averaged over all parameters that are
    trained.

    Takes the first examples of the split, and fewer batches if the split is too small. `batch=1` is the variance over
    examples. The baseline of Kang et al. (arXiv 2411.07681, development code) has 5 batches of 128.
    """

    phase = "gradient"
    OPTIONS: ClassVar = {
        "batch": (ROWS, "examples of each gradient"),
        "batches": (integer(2, 2**16), "gradients"),
        "micro_batches": (ROWS, "parts in which a gradient is summed; divides the batch"),
    }

    def __init__(self, split, run, *, batch: int = 128, batches: int = 5, micro_batches: int = 1):
        """Raises UserError if the split has fewer than two batches."""
        super().__init__(split, run)
        examples = len(split.data)
        self._batch, self._batches, self._micro_batches = batch, min(batches, examples // batch), micro_batches
        if self._batches < 2:
            raise UserError(
                f"gradient_variance: there is no variance of {self._batches} gradients; split {split.name!r} has "
                f"{examples} examples, so lower its batch={batch}, or raise its batches"
            )
        self._length = pad_to(split.data.lengths[: self.examples].max(), run.buckets)
        self._programs = None

    @property
    def examples(self) -> int:
        """Number of examples that it measures."""
        return self._batches * self._batch

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """The measure `gradient_variance` over all batches, whatever `only` says; no columns."""
        begin, update = self._compiled(params)
        run, size, seen = self.run, self._batch, begin(params)
        for first in range(0, self.examples, size):
            rows = range(first, first + size)
            batch = collate(self.split.data, rows, batch=size, length=self._length, here=run.places_here(size))
            seen = update(seen, params, run.put({key: batch[key] for key in ("tokens", "weights")}))
            yield Part(rows)
        count, _, squares = seen
        variance = float(squares) / (float(count) - 1)
        yield Part((), measures={"gradient_variance": variance / run.model.config.trained})

    def _compiled(self, params) -> tuple:
        from premem_jax.models.adapters import split
        from premem_jax.training.measures import add_gradient, no_gradients

        if self._programs is None:
            run, layout = self.run, (self.run.everywhere, self.run.layout(split(params)[0]), self.run.everywhere)
            self._programs = (
                run.program(no_gradients, out_shardings=layout),
                run.program(add_gradient, run.model, self._micro_batches, out_shardings=layout, donate_argnums=(0,)),
            )
        return self._programs

    @classmethod
    def batch_at_a_time(cls, options) -> float:
        """The size of a micro-batch."""
        return options["batch"] / options["micro_batches"]
