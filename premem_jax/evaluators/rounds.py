"""Long responses are sampled in rounds; unfinished ones are collected into batches of their own.

A batch is as slow as its longest response, and most responses are much shorter. So a batch samples a limited number of
tokens. Unfinished responses are re-prefilled with their own tokens and continued in new batches.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from premem_jax.data.packing import pad_to
from premem_jax.data.pipeline import Tokenized, collate, evaluation_batches


class Batch(NamedTuple):
    """The batch of a round; `at` is the (row, sample) of each of its responses, example by example."""

    round: int
    rows: Sequence[int]
    at: list[tuple[int, int]]
    size: int  # examples, with those that are missing
    arrays: dict  # of `collate`: ids, tokens, prompt_length; `first` (B,), the first sample; `begun` (B, t), its tokens


class Drawn(NamedTuple):
    """The responses to one prompt: `tokens` (R, T), zero after the end; `length` (R,); `verdict` (R,)."""

    tokens: np.ndarray
    length: np.ndarray
    verdict: np.ndarray


def round_tokens(max_new_tokens: int, first: int) -> list[int]:
    """Tokens of each round, `max_new_tokens` in total: `first`, then each round doubles the length."""
    ends = [end for i in range(max_new_tokens.bit_length()) if (end := first << i) < max_new_tokens]
    return [end - begin for begin, end in itertools.pairwise([0, *ends, max_new_tokens])]


class Rounds:
    """The responses to the prompts of a split: the next batches, and the tokens so far."""

    def __init__(self, data: Tokenized, samples: int, tokens: Sequence[int], buckets: Sequence[int]):
        """`tokens`: the result of `round_tokens`."""
        self._data, self._samples, self._tokens, self._buckets = data, samples, tokens, buckets
        self._waiting = [deque() for _ in self._tokens]  # (row, sample) by the round that comes next
        self._drawn: dict[int, Drawn] = {}
        self._unfinished: dict[int, int] = {}  # responses, by row

    def batches(self, size: int, only: Sequence[int] | None, here) -> Iterator[Batch]:
        """Batches of `size` prompts, and of unfinished responses as soon as they fill a batch; at the end, of the rest.

        Call `add` with the result of a batch before taking the next. `only` are the rows to sample (default: all);
        `here(size)` gives the batch rows of this process.
        """
        R, later = self._samples, range(1, len(self._tokens))
        for rows, arrays in evaluation_batches(
            self._data, batch=size, buckets=self._buckets, prompts_only=True, only=only, here=here(size)
        ):
            first, begun = np.zeros_like(arrays["ids"]), np.zeros((len(arrays["ids"]), 0), np.int32)
            yield Batch(0, rows, [(row, r) for row in rows for r in range(R)], size, given(arrays, first, begun))
            for i in later:
                while len(self._waiting[i]) >= continuing(size, R):
                    yield self._continued(i, continuing(size, R), here)
        for i in later:
            while self._waiting[i]:
                yield self._continued(i, continuing(size, R), here)

    def _continued(self, i: int, size: int, here) -> Batch:
        at = [self._waiting[i].popleft() for _ in range(min(size, len(self._waiting[i])))]
        rows, begun = [row for row, _ in at], sum(self._tokens[:i])
        so_far = [self._drawn[row].tokens[r, :begun] for row, r in at]
        prompts = [np.concatenate([self._data.prompts[row], own]) for row, own in zip(rows, so_far, strict=True)]
        data = Tokenized([self._data.examples[row] for row in rows], prompts, so_far)
        length = pad_to(max(map(len, prompts)), self._buckets)
        arrays = collate(data, range(len(at)), batch=size, length=length, prompts_only=True, here=here(size))
        first, own = np.zeros(size, np.int32), np.zeros((size, begun), np.int32)
        first[: len(at)], own[: len(at)] = [r for _, r in at], so_far
        return Batch(i, rows, at, size, given(arrays, first[here(size)], own[here(size)]))

    def add(self, batch: Batch, tokens_XT: np.ndarray, length_X: np.ndarray, verdict_X: np.ndarray) -> list[int]:
        """Adds the result of a batch, a row for each of its `at`; returns the rows of the split that it completes."""
        begun, complete = sum(self._tokens[: batch.round]), []
        for (row, r), tokens, length, verdict in zip(batch.at, tokens_XT, length_X, verdict_X, strict=True):
            if row not in self._drawn:
                self._drawn[row], self._unfinished[row] = self._nothing(), self._samples
            mine = self._drawn[row]
            mine.tokens[r, begun : begun + len(tokens)] = tokens
            mine.length[r], mine.verdict[r] = begun + length, verdict
            if length == len(tokens) and batch.round + 1 < len(self._tokens):
                self._waiting[batch.round + 1].append((row, r))
            else:
                self._unfinished[row] -= 1
                complete += [row] * (not self._unfinished[row])
        return complete

    def take(self, row: int) -> Drawn:
        """Removes and returns the responses of a complete row."""
        return self._drawn.pop(row)

    def _nothing(self) -> Drawn:
        R, T = self._samples, sum(self._tokens)
        return Drawn(np.zeros((R, T), np.int32), np.zeros(R, np.int32), np.zeros(R, np.int8))


def given(arrays: dict, first: np.ndarray, begun: np.ndarray) -> dict:
    return {name: arrays[name] for name in ("ids", "tokens", "prompt_length")} | dict(first=first, begun=begun)


def continuing(size: int, samples: int) -> int:
    """Size of a batch of unfinished responses, if a first batch has `size` prompts of `samples` each.

    Half as many responses, because each needs its own prompt cache.
    """
    return size * max(1, samples // 2)
