"""Squeezing: along the chosen response, where does the model's mass go?"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from premem_jax.errors import UserError
from premem_jax.evaluators.base import Evaluator, Part
from premem_jax.evaluators.probe import answered
from premem_jax.limits import NATURAL, ROWS


class Squeezing(Evaluator):
    """The likeliest token at each place of y⁺ (teacher forcing), as the split `SPLIT greedy path`, and three measures.

    `target_nll` is minus the mean over places of max_v log π(v): the argmax curve of Ren & Sutherland (arXiv
    2407.10490, section 4), on the prefix of y⁺ for every prompt. Measures are means over all places: `SPLIT_entropy`
    in nats, `SPLIT_top_mass`, and `SPLIT_falling`, the share of the vocabulary that is less likely than it was under
    the weights that the run began with.
    """

    phase = "score"
    columns = ("target_nll", "target_tokens")
    OPTIONS: ClassVar = {
        "batch": (ROWS, "prompts at a time, over all devices"),
        "prompts": (NATURAL, "examples that are looked at, the first of the split; 0: all"),
    }

    def __init__(self, split, run, *, batch: int = 32, prompts: int = 0):
        """Raises UserError where the run has no base."""
        from premem_jax.training.measures import prefix_measures

        path = dataclasses.replace(answered(split, run, "chosen", prompts), name=f"{split.name} greedy path")
        super().__init__(path, run)
        if run.base is None:
            raise UserError("squeezing: the weights that the run began with are not known")
        self._batch, self._of = batch, split.name.replace(" ", "_")
        self._program = run.program(prefix_measures, run.model)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Columns of all rows, whatever `only` says, since the measures are of all of them."""
        base, sums, places = self.run.base(), np.zeros(3), 0
        for rows, arrays in self.run.batches(self.split.data, self._batch):
            found = self._program(params, base, arrays["tokens"], arrays["weights"])
            peak, count, *more = (np.asarray(x, np.float64)[: len(rows)] for x in found)
            columns = {"target_nll": (-peak / count).astype(np.float32), "target_tokens": count.astype(np.int32)}
            sums, places = sums + [x.sum() for x in more], places + count.sum()
            yield Part(rows, columns)
        names = ("entropy", "top_mass", "falling")
        yield Part((), measures={f"{self._of}_{name}": x / places for name, x in zip(names, sums, strict=True)})
