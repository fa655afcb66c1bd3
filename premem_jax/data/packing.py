"""Which sequences share a row of a training batch, and the arrays that hold them."""

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

SHORT = 1024  # tokens of a row, under which padding grows, and above which attention does
LANES = 128  # lengths of packed rows are multiples, for attention kernels on TPUs

Tokens = tuple[np.ndarray, np.ndarray]  # of one sequence, and the weight of each as a target


def pad_to(longest: int, buckets: Sequence[int], step: int = 32) -> int:
    """The smallest bucket that holds `longest` tokens; beyond the last bucket, the next multiple of `step`."""
    return next((bucket for bucket in sorted(buckets) if bucket >= longest), -(-longest // step) * step)


def pack(sizes: Sequence[int], rows: int) -> list[list[int]]:
    """Numbers of the sequences in each row: the longest first, each to the row with the fewest tokens so far.

    This is Graham's rule for equal loads (SIAM J. Appl. Math. 17(2), 1969). Rows are in the order of their first
    sequence, so with as many rows as sequences, sequence i is row i.
    """
    loads, held = [(0, row) for row in range(rows)], [[] for _ in range(rows)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, row = heapq.heappop(loads)
        held[row].append(i)
        heapq.heappush(loads, (load + int(sizes[i]), row))
    return sorted(map(sorted, held), key=lambda row: row[0] if row else len(sizes))


def fill(held: Sequence[Sequence[int]], length: int, sequence: Callable[[int], Tokens]) -> dict[str, np.ndarray]:
    """`tokens`, `weights` and `segments` (X, T) of rows that hold some sequences one after another.

    Segments are 1 + the number of the sequence, and 0 at the padding, which follows the last one.
    """
    kinds = {"tokens": np.int32, "weights": np.float32, "segments": np.int32}
    out = {name: np.zeros((len(held), length), kind) for name, kind in kinds.items()}
    for n, row in enumerate(held):
        end = 0
        for i in row:
            tokens, weights = sequence(i)
            place = slice(end, end := end + len(tokens))
            out["tokens"][n, place], out["weights"][n, place], out["segments"][n, place] = tokens, weights, i + 1
    return out


class Packing(NamedTuple):
    """How the sequences of an update are laid out.

    Attributes:
      rows: rows that they share; 0 gives each its own row.
      lengths: lengths that shared rows may have; beyond the last one, multiples of LANES.
      micro_batches: parts of the update; part a has the rows a, a + A, a + 2A, ...
      here: from a number of rows to those that this process makes (default: all).
    """

    rows: int = 0
    lengths: Sequence[int] = ()
    micro_batches: int = 1
    here: Callable[[int], Sequence[int]] = range

    @classmethod
    def of(cls, each: Sequence[int], batch: int, parts: int, micro_batches: int = 1, here=range) -> "Packing":
        """Equally many rows for each of the `parts` of a mesh and micro-batch: one, or more of at least SHORT tokens.

        Args:
          each: tokens for each of the `batch` examples of an update, smallest first, one number for each size that
            updates may have; without any, each sequence has its own row.
        """
        if not each:
            return cls(0, (), micro_batches, here)
        rows = parts * micro_batches
        rows *= max(each[0] * batch // (rows * SHORT), 1)
        lengths = sorted({pad_to(-(-size * batch // rows), (), LANES) for size in each})
        return cls(rows, tuple(lengths), micro_batches, here)

    @classmethod
    def on(cls, mesh, each: Sequence[int] = (), batch: int = 1, micro_batches: int = 1) -> "Packing":
        """`of` for the batch shards of a mesh, with the rows of this process."""
        from premem_jax import sharding

        return cls.of(each, batch, sharding.parts(mesh), micro_batches, partial(sharding.places_here, mesh))

    def shares(self, sequences: int) -> bool:
        """Whether rows of a batch of so many sequences hold more than one."""
        return 0 < self.rows < sequences

    def largest(self, sequences: int, longest: int) -> tuple[int, int]:
        """Rows, and tokens of each, of the largest batch of so many sequences; `longest` are those of a sequence."""
        return (self.rows, max(self.lengths)) if self.shares(sequences) else (sequences, longest)

    def batch(
        self,
        sizes: Sequence[int],
        sequence: Callable[[int], Tokens],
        *,
        full: int,
        buckets: Sequence[int],
        part_of: Callable[[int], int] | None = None,
    ) -> dict[str, np.ndarray]:
        """The arrays of `fill` for sequences of these sizes.

        Args:
          full: sequences of a full batch; the last one of an epoch has fewer.
          buckets: lengths that rows of one sequence may have.
          part_of: the micro-batch in which a sequence must be, if it matters.
        """
        shares = self.shares(full)
        rows, parts = self.rows if shares else full, self.micro_batches if part_of else 1
        held: list[list[int]] = [[]] * rows
        for part in range(parts):
            mine = [i for i in range(len(sizes)) if part_of is None or part_of(i) == part]
            packed = pack([sizes[i] for i in mine], rows // parts)
            held[part::parts] = [[mine[j] for j in row] for row in packed]
        longest = max(sum(int(sizes[i]) for i in row) for row in held)
        length = pad_to(longest, self.lengths, LANES) if shares else pad_to(longest, buckets)
        return fill([held[row] for row in self.here(rows)], length, sequence)


ALONE = Packing()  # a row for each sequence
