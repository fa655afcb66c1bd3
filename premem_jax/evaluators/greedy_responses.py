"""Greedy responses: what the model says when it takes the likeliest token each time, and how much of it repeats."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, Part
from premem_jax.evaluators.rounds import Drawn
from premem_jax.limits import NATURAL

GRAM = 4


class GreedyResponses(Accuracy):
    """Samples and grades one response to each prompt at temperature 0, as the split `SPLIT greedy`; keeps all texts.

    Measures: `SPLIT_greedy_length`, mean tokens of a response, and `SPLIT_repeated_4grams`, the mean over responses of
    the share of 4-grams that occurred earlier in the same response (Welleck et al., arXiv 1908.04319, section 6).
    """

    planned = ""
    OPTIONS: ClassVar = {
        **{key: Accuracy.OPTIONS[key] for key in ("batch", "max_new_tokens", "first_round")},
        "prompts": (NATURAL, "examples that are answered, the first of the split; 0: all"),
    }

    def __init__(
        self, split, run, *, batch: int = 64, max_new_tokens: int = 512, first_round: int = 128, prompts: int = 0
    ):
        data = split.data.first(prompts)
        some = dataclasses.replace(split, name=f"{split.name} greedy", data=data)
        settings = dict(batch=batch, max_new_tokens=max_new_tokens, first_round=first_round)
        super().__init__(some, run, samples=1, temperature=0.0, keep_texts=len(data), **settings)
        self._of, self._lengths, self._repeated = split.name.replace(" ", "_"), [], []

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """All rows at once, whatever `only` says, since the measures are of all of them."""
        self._lengths, self._repeated = [], []
        found = Collected(len(self.split.data)).all(super().measure(params, step))
        each = {"greedy_length": self._lengths, f"repeated_{GRAM}grams": self._repeated}
        measures = {f"{self._of}_{name}": float(np.mean(sorted(values))) for name, values in each.items()}
        yield Part(range(len(found.done)), found.columns, found.texts, measures)

    def _part(self, step: int, rows: list[int], drawn: list[Drawn]) -> Part:
        said = [mine.tokens[0, : mine.length[0]] for mine in drawn]
        self._lengths += map(len, said)
        self._repeated += map(repeated, said)
        return super()._part(step, rows, drawn)


def repeated(tokens: np.ndarray, n: int = GRAM) -> float:
    """The share of n-grams that occurred earlier in the same text; 0 for one without n-grams."""
    grams = [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
