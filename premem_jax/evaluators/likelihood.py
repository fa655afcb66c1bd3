"""Likelihood: target NLL of each example, the measure of memorization."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from premem_jax.data.packing import Packing
from premem_jax.evaluators.base import Evaluator, Part
from premem_jax.limits import ROWS, TOKENS, flag, tuple_of


class Likelihood(Evaluator):
    """Mean NLL and token count of each example's target, in fp32, with the training weights."""

    phase, planned = "score", "score"
    columns = ("target_nll", "target_tokens")
    OPTIONS: ClassVar = {
        "batch": (ROWS, "examples that are scored at a time, over all devices"),
        "alone": (flag(), "score targets without their prompts, as a split of their own"),
        "packed_tokens": (
            tuple_of(TOKENS, increasing=True),
            "tokens for each example of shared rows, as in training",
        ),
    }

    def __init__(self, split, run, *, batch: int = 64, alone: bool = False, packed_tokens: tuple[int, ...] = ()):
        from premem_jax.models.nll import target_nll

        super().__init__(split.alone(run.tokenizer) if alone else split, run)
        self._batch, self._packed = batch, packed_tokens
        self._program = run.program(target_nll, run.model, examples=batch)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """`target_nll` in nats and `target_tokens` of the rows `only` (default: all), batch by batch."""
        if self._packed:
            batches = self.run.shared_batches(self.split.data, self._batch, self._packed, only)
        else:
            batches = self.run.batches(self.split.data, self._batch, only)
        for rows, arrays in batches:
            found = self._program(params, arrays["tokens"], arrays["weights"], arrays.get("segments"))
            nll, count = (np.asarray(x)[: len(rows)] for x in found)
            yield Part(rows, {"target_nll": nll, "target_tokens": count})

    @classmethod
    def cost(cls, options, shape, layout, T: int):
        """Cost of one batch."""
        from premem_jax.models import costs

        B, T = cls._rows(options, layout.data * layout.fsdp, T)
        return costs.score(shape, layout, B=B, T=T)

    @classmethod
    def program(cls, options, planned):
        """The program of the longest batch."""
        from premem_jax import sharding
        from premem_jax.models.nll import target_nll

        shape = cls._rows(options, sharding.parts(planned.mesh), planned.T)
        kinds = ("int32", "float32", "int32")[: 3 if options["packed_tokens"] else 2]
        arrays = (planned.batch(shape, kind) for kind in kinds)
        return partial(target_nll, planned.model, examples=options["batch"]), (planned.params, *arrays)

    @staticmethod
    def _rows(options, parts: int, T: int) -> tuple[int, int]:
        """Rows of the largest batch, and their tokens."""
        return Packing.of(options["packed_tokens"], options["batch"], parts).largest(options["batch"], T)
