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


class Batch(NamedTuple):
    """The batch of a round; `at` is the (place, row, sample) of each of its responses, place x = b * R + r.

    R is 1 or the number of samples, whose prompt's cache is then shared.
    """

    round: int
    rows: Sequence[int]
    at: list[tuple[int, int, int]]
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

        Prompts whose samples are mostly finished by their reference have the others drawn as unfinished responses. Call
        `add` with the result of a batch before taking the next. `here(size)` gives the batch rows of this process.
        """
        R, unfinished = self._samples, self._unfinished
        shared = [row for row in unfinished if 2 * len(unfinished[row]) > R]
        self._waiting[0] += [(row, r) for row in unfinished if row not in set(shared) for r in unfinished[row]]
        shared.sort(key=lambda row: len(self._data.prompts[row]) + max(self._drawn[row].length[unfinished[row]]))
        for begin in range(0, len(shared), size):
            starts = [(row, unfinished[row]) for row in shared[begin : begin + size]]
            yield self._batch(0, size, R, starts, here(size))
            yield from self._continued(continuing(size, R), here, least=continuing(size, R))
        yield from self._continued(continuing(size, R), here, least=1)

    def _continued(self, size: int, here, least: int) -> Iterator[Batch]:
        for i, waiting in enumerate(self._waiting):
            while len(waiting) >= least:
                some = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield self._batch(i, size, 1, [(row, [r]) for row, r in some], here(size))

    def _batch(self, i: int, size: int, R: int, starts: list[tuple[int, list[int]]], here) -> Batch:
        """Of rows and their samples to go on with, which are prefixes of each other so far."""
        rows = [row for row, _ in starts]
        first, begun, so_far, at = np.zeros(size, np.int32), np.full((size, R), -1, np.int32), [], []
        for b, (row, samples) in enumerate(starts):
            mine, first[b] = self._drawn[row], 0 if R > 1 else samples[0]
            begun[b, np.array(samples) - first[b]] = mine.length[samples]
            longest = max(samples, key=lambda r: mine.length[r])
            so_far.append(mine.tokens[longest, : mine.length[longest]])
            at += [(b * R + r - int(first[b]), row, r) for r in samples]
        data = Tokenized([self._data.examples[row] for row in rows], [self._data.prompts[row] for row in rows], so_far)
        length = pad_to(data.lengths.max(), self._buckets)
        arrays = collate(data, range(len(rows)), batch=size, length=length, here=here)
        arrays = {name: arrays[name] for name in ("ids", "tokens", "prompt_length")}
        return Batch(i, rows, at, size, arrays | dict(first=first[here], begun=begun[here]))

    def add(self, batch: Batch, tokens_XT: np.ndarray, length_X: np.ndarray, verdict_X: np.ndarray) -> list[int]:
        """Adds the result of a batch; returns the rows of the split that it completes."""
        T, complete = sum(self._tokens), []
        for x, row, r in batch.at:
            mine, begun = self._drawn[row], self._drawn[row].length[r]
            mine.tokens[r, begun : begun + length_X[x]] = tokens_XT[x, : length_X[x]]
            mine.length[r], mine.verdict[r] = begun + length_X[x], verdict_X[x]
            if length_X[x] == tokens_XT.shape[1] and mine.length[r] < T:
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
