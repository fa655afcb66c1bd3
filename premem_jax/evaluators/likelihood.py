"""Likelihood: target NLL of each example, the measure of memorization."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from premem_jax.evaluators.base import Evaluator, Part
from premem_jax.limits import ROWS, flag


class Likelihood(Evaluator):
    """Mean NLL and token count of each example's target, in fp32, with the training weights."""

    phase, planned = "score", "score"
    columns = ("target_nll", "target_tokens")
    OPTIONS: ClassVar = {
        "batch": (ROWS, "examples that are scored at a time, over all devices"),
        "alone": (flag(), "score targets without their prompts, as a split of their own"),
    }

    def __init__(self, split, run, *, batch: int = 64, alone: bool = False):
        from premem_jax.models.nll import target_nll

        super().__init__(split.alone(run.tokenizer) if alone else split, run)
        self._batch = batch
        self._program = run.program(target_nll, run.model)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """`target_nll` in nats and `target_tokens` of the rows `only` (default: all), batch by batch."""
        for rows, arrays in self.run.batches(self.split.data, self._batch, only):
            found = self._program(params, arrays["tokens"], arrays["weights"])
            nll, count = (np.asarray(x)[: len(rows)] for x in found)
            yield Part(rows, {"target_nll": nll, "target_tokens": count})

    @classmethod
    def cost(cls, options, shape, layout, T: int):
        """Cost of one batch."""
        from premem_jax.models import costs

        return costs.score(shape, layout, B=options["batch"], T=T)

    @classmethod
    def program(cls, options, planned):
        """The program of the longest batch."""
        from premem_jax.models.nll import target_nll

        shape = options["batch"], planned.T
        arrays = planned.batch(shape, "int32"), planned.batch(shape, "float32")
        return partial(target_nll, planned.model), (planned.params, *arrays)
