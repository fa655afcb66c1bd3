"""Multiple choice by likelihood: which option of a question the model finds likeliest after the prompt."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from premem_jax.data.fewshot import with_shots
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Evaluator, Part
from premem_jax.limits import NATURAL, ROWS


class OptionLikelihood(Evaluator):
    """Counts as correct the questions whose right option is the likeliest, by log-likelihood summed over its tokens.

    `target_nll` is the negative log-probability of the right option among the options, of one token each: the
    continuous measure beside accuracy. The split is one of its own, SPLIT options. With `shots`, solved questions of
    the same split stand before each (of the same subject where they have one), never the question itself. Where all
    options are single tokens, as letters are, one pass over the prompt scores those of a question.
    """

    phase = "score"
    columns = ("target_nll", "target_tokens", "samples", "correct")
    OPTIONS: ClassVar = {
        "batch": (ROWS, "options that are scored at a time, or questions if these have one token, over all devices"),
        "shots": (NATURAL, "solved questions of the split in front of each; 0: none"),
    }

    def __init__(self, split, run, *, batch: int = 64, shots: int = 0):
        """Raises UserError if a question has no options, or its target is none of them."""
        from premem_jax.models.nll import log_likelihood, next_log_p

        examples = split.data.examples
        if odd := [example.id for example in examples if example.target not in example.options]:
            raise UserError(f"split {split.name!r}: example {odd[0]} has no options among which its target is")
        if shots:
            examples = with_shots(examples, examples, shots, run.seed, by="subject")
        name = f"{split.name} options" + (f" after {shots} shots" if shots else "")
        super().__init__(dataclasses.replace(split, name=name), run)
        self._row_of = np.repeat(np.arange(len(examples)), [len(example.options) for example in examples])
        self._right = np.array([option == e.target for e in examples for option in e.options])
        pairs = run.tokenizer.encode_pairs([(e.prompt, option) for e in examples for option in e.options])
        prompts, targets = zip(*pairs, strict=True)
        targets = [target[:-1] for target in targets]  # the stop marker is no part of an option
        owners = [examples[row] for row in self._row_of]
        self._options = dataclasses.replace(split.data, examples=owners, prompts=prompts, targets=targets)
        self._batch, self._ids = batch, _tokens(self._options, self._row_of)
        self._program = run.program(log_likelihood if self._ids is None else next_log_p, run.model)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """All columns of the rows `only` (default: all), once all of their options are scored."""
        wanted = np.arange(self.examples) if only is None else np.asarray(only, int)
        asked = np.flatnonzero(np.isin(self._row_of, wanted))
        score = self._each(params, asked) if self._ids is None else self._together(params, wanted)
        nll, correct = (np.zeros(len(wanted), kind) for kind in (np.float32, np.int32))
        for at, row in enumerate(wanted):
            mine = self._row_of == row
            options, right = score[mine], self._right[mine]
            nll[at] = np.logaddexp.reduce(options) - np.logaddexp.reduce(options[right])
            correct[at] = right[np.argmax(options)]
        once = np.ones(len(wanted), np.int32)
        yield Part(wanted, {"target_nll": nll, "target_tokens": once, "samples": once, "correct": correct})

    def _each(self, params, asked: np.ndarray) -> np.ndarray:
        """(O,) log-likelihoods of the options `asked`, a pass for each."""
        score = np.full(len(self._row_of), np.nan)
        for rows, arrays in self.run.batches(self._options, self._batch, asked):
            score[rows] = np.asarray(self._program(params, arrays["tokens"], arrays["weights"]))[: len(rows)]
        return score

    def _together(self, params, wanted: np.ndarray) -> np.ndarray:
        """(O,) log-probabilities of the options of the questions `wanted`, a pass for all of one question."""
        score = np.full(len(self._row_of), np.nan)
        first = np.searchsorted(self._row_of, np.arange(self.examples))
        for rows, arrays in self.run.batches(self._options.at(first), self._batch, wanted):
            ids = np.zeros((self._batch, self._ids.shape[1]), np.int32)
            ids[: len(rows)] = self._ids[rows]
            placed = self.run.put(ids[self.run.places_here(self._batch)])
            found = np.asarray(self._program(params, arrays["tokens"], arrays["weights"], placed))
            for row, log_p in zip(rows, found, strict=False):
                mine = np.flatnonzero(self._row_of == row)
                score[mine] = log_p[: len(mine)]
        return score


def _tokens(options, row_of: np.ndarray) -> np.ndarray | None:
    """(E, K) the token of each option of a question, padded with 0; None if any has several, or another prompt."""
    ids = np.zeros((row_of[-1] + 1, np.bincount(row_of).max()), np.int32)
    for row in range(len(ids)):
        mine = np.flatnonzero(row_of == row)
        if any(len(options.targets[i]) != 1 for i in mine):
            return None
        if any(not np.array_equal(options.prompts[i], options.prompts[mine[0]]) for i in mine):
            return None
        ids[row, : len(mine)] = [options.targets[i][0] for i in mine]
    return ids
