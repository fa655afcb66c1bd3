"""Long responses are sampled in rounds; unfinished ones are collected into batches of their own.

A batch is as slow as its longest response, and most responses are much shorter. So a batch samples a limited number of
tokens. Unfinished responses are re-prefilled with their own tokens and continued in new batches. The reference may have
decided the beginning of a response, or all of it, before the first round (`sampling/drafted.py`).
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from premem_jax.data.packing import pad_to
from premem_jax.data.pipeline import Tokenized, collate

PREFILL = 0.5  # cost of a prefilled token, if a decoded one costs 1


class Batch(NamedTuple):
    """The batch of a round; `at` is the (row, sample) of each of its responses, R of each example one after the other.

    R is 1, or the number of samples, which then share the cache of their prompt.
    """

    round: int
    rows: Sequence[int]
    at: list[tuple[int, int]]
    size: int  # examples, with those that are missing
    arrays: dict  # ids (B,), prompt_length (B,), tokens (B, P) with what is begun, first (B,), begun (B, R) of `sample`


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
    """The responses to the prompts of some rows of a split: the next batches, and the tokens so far."""

    def __init__(
        self, data: Tokenized, samples: int, tokens: Sequence[int], buckets: Sequence[int], rows: Sequence[int]
    ):
        """`tokens`: the result of `round_tokens`."""
        self._data, self._samples, self._tokens, self._buckets = data, samples, tokens, buckets
        self._waiting = [deque() for _ in self._tokens]  # (row, sample) by the round that comes next
        self._drawn = {row: self._nothing() for row in rows}
        self._unfinished = {row: list(range(samples)) for row in rows}

    def begin(self, row: int, kept_R: np.ndarray, ended_R: np.ndarray, verdict_R: np.ndarray) -> bool:
        """Begins each response to a row with tokens of its reference; returns whether all end there."""
        mine, reference = self._drawn[row], self._data.targets[row]
        for r, kept in enumerate(kept_R):
            mine.tokens[r, :kept] = reference[:kept]
        mine.length[:], mine.verdict[:] = kept_R, verdict_R
        self._unfinished[row] = np.flatnonzero(~ended_R).tolist()
        return not self._unfinished[row]

    def batches(self, size: int, here) -> Iterator[Batch]:
        """Batches of `size` prompts, and of unfinished responses as soon as they fill a batch; at the end, of the rest.

        Samples of a prompt share its cache, or go on as unfinished responses where that costs less. Call `add` with the
        result of a batch before taking the next. `here(size)` gives the batch rows of this process.
        """
        R, prompts = self._samples, self._data.prompts
        shared = [row for row in self._unfinished if self._shares(row)]
        shared.sort(key=lambda row: len(prompts[row]) + max(self._drawn[row].length))
        alone = [(row, r) for row in sorted({*self._unfinished} - {*shared}) for r in self._unfinished[row]]
        self._waiting[0] += sorted(alone, key=lambda response: self._left(*response))
        for begin in range(0, len(shared), size):
            at = [(row, r) for row in shared[begin : begin + size] for r in range(R)]
            yield self._batch(0, size, R, at, here(size))
            yield from self._continued(continuing(size, R), here, least=continuing(size, R))
        yield from self._continued(continuing(size, R), here, least=1)

    def _left(self, row: int, r: int) -> int:
        """A guess at the tokens that a response still needs: as many as its reference has left."""
        return max(1, len(self._data.targets[row]) - self._drawn[row].length[r])

    def _shares(self, row: int) -> bool:
        """Whether all samples together cost less than the unfinished ones alone, which prefill a text each."""
        text_R, left = len(self._data.prompts[row]) + self._drawn[row].length, self._unfinished[row]
        together = self._samples * max(self._left(row, r) for r in left) + PREFILL * max(text_R)
        return together <= sum(self._left(row, r) + PREFILL * text_R[r] for r in left)

    def _continued(self, size: int, here, least: int) -> Iterator[Batch]:
        for i, waiting in enumerate(self._waiting):
            while len(waiting) >= least:
                at = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield self._batch(i, size, 1, at, here(size))

    def _batch(self, i: int, size: int, R: int, at: list[tuple[int, int]], here) -> Batch:
        rows, so_far = [row for row, _ in at[::R]], []
        first, begun = np.zeros(size, np.int32), np.zeros((size, R), np.int32)
        for b, (row, r) in enumerate(at[::R]):
            mine = self._drawn[row]
            first[b], begun[b] = r, mine.length[r : r + R]
            longest = r + np.argmax(begun[b])  # the others begin as this one does
            so_far.append(mine.tokens[longest, : mine.length[longest]])
        data = Tokenized([self._data.examples[row] for row in rows], [self._data.prompts[row] for row in rows], so_far)
        length = pad_to(data.lengths.max(), self._buckets)
        arrays = collate(data, range(len(rows)), batch=size, length=length, here=here)
        arrays = {name: arrays[name] for name in ("ids", "tokens", "prompt_length")}
        return Batch(i, rows, at, size, arrays | dict(first=first[here], begun=begun[here]))

    def add(self, batch: Batch, tokens_XT: np.ndarray, length_X: np.ndarray, verdict_X: np.ndarray) -> list[int]:
        """Adds the result of a batch, a row for each of its `at`; returns the rows of the split that it completes."""
        complete = []
        for (row, r), tokens, length, verdict in zip(batch.at, tokens_XT, length_X, verdict_X, strict=True):
            if r not in self._unfinished[row]:  # the reference has decided it, and it was drawn beside others
                continue
            mine, begun = self._drawn[row], self._drawn[row].length[r]
            mine.tokens[r, begun : begun + length] = tokens[:length]
            mine.length[r], mine.verdict[r] = begun + length, verdict
            if length == len(tokens) and mine.length[r] < sum(self._tokens):
                self._waiting[batch.round + 1].append((row, r))
            else:
                self._unfinished[row].remove(r)
                complete += [row] * (not self._unfinished[row])
        return complete

    def take(self, row: int) -> Drawn:
        """Removes and returns the responses of a complete row."""
        del self._unfinished[row]
        return self._drawn.pop(row)

    def _nothing(self) -> Drawn:
        R, T = self._samples, sum(self._tokens)
        return Drawn(np.zeros((R, T), np.int32), np.zeros(R, np.int32), np.zeros(R, np.int8))


def continuing(size: int, samples: int) -> int:
    """Size of a batch of unfinished responses, if a first batch has `size` prompts of `samples` each.

    Half as many responses, because each needs its own prompt cache.
    """
    return size * max(1, samples // 2)
