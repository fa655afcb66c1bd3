"""Exact match: whether the greedy response is the reference, token by token."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from premem_jax.evaluators.base import Evaluator, Part
from premem_jax.limits import ROWS


class ExactMatch(Evaluator):
    """Counts as correct what the greedy response says exactly as the reference does, and scores the reference.

    One forward pass decides. `accuracy` with temperature 0 also accepts other responses with the same final answer, and
    costs a pass for each token.
    """

    phase = "score"
    columns = ("target_nll", "target_tokens", "samples", "correct")
    OPTIONS: ClassVar = {"batch": (ROWS, "examples that are scored at a time, over all devices")}

    def __init__(self, split, run, *, batch: int = 64):
        from premem_jax.models.nll import greedy_match

        super().__init__(split, run)
        self._batch, self._program = batch, run.program(greedy_match, run.model)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """All columns of the rows `only` (default: all), batch by batch; one sample each."""
        for rows, arrays in self.run.batches(self.split.data, self._batch, only):
            found = self._program(params, arrays["tokens"], arrays["weights"])
            match, nll, count = (np.asarray(x)[: len(rows)] for x in found)
            once = np.ones(len(rows), np.int32)
            yield Part(
                rows, {"target_nll": nll, "target_tokens": count, "samples": once, "correct": match.astype(np.int32)}
            )
