"""Tokenized examples, and padded batches of them, in NumPy. `reader.py` has the training batches."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.data.packing import Packing, Tokens, fill, pad_to
from premem_jax.errors import UserError

if TYPE_CHECKING:
    from premem_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A tokenized split: row e of every field is the same example. `rejected` is empty but for preferences."""

    examples: Sequence[Example]
    prompts: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    rejected: Sequence[np.ndarray] = ()

    @property
    def ids(self) -> np.ndarray:
        return np.array([example.id for example in self.examples], np.int32)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of prompt plus target (E,)."""
        return np.array([len(p) + len(t) for p, t in zip(self.prompts, self.targets, strict=True)], np.int32)

    def __len__(self) -> int:
        return len(self.examples)

    def first(self, count: int) -> "Tokenized":
        """The first `count` rows, all of them if it is 0."""
        return Tokenized(*(getattr(self, field.name)[: count or None] for field in dataclasses.fields(self)))

    def at(self, rows: Collection[int]) -> "Tokenized":
        """Some rows, in this order."""
        pick = lambda column: [column[row] for row in rows] if len(column) else column
        return Tokenized(*(pick(getattr(self, field.name)) for field in dataclasses.fields(self)))


def tokenize(
    name: str, examples: Sequence[Example], tokenizer: "Tokenizer", *, context: int, drop_long: bool
) -> Tokenized:
    """Tokenizes the examples of the split `name`.

    Raises:
      UserError: the split is empty, or examples are longer than `context` tokens and `drop_long` is not set.
    """
    pairs = tokenizer.encode_pairs([(example.prompt, example.target) for example in examples])
    fits = [len(prompt) + len(target) <= context for prompt, target in pairs]
    if not all(fits) and not drop_long:
        long = [(e.id, len(p) + len(t)) for e, (p, t), ok in zip(examples, pairs, fits, strict=True) if not ok]
        named = ", ".join(f"{id} ({length} tokens)" for id, length in long[:5]) + (", ..." if len(long) > 5 else "")
        raise UserError(
            f"split {name!r}: {len(long)} of {len(examples)} examples are longer than data.context={context}: {named}; "
            "raise data.context, or set data.drop_long=True to leave them out"
        )
    kept = [i for i, ok in enumerate(fits) if ok]
    if not kept:
        raise UserError(f"split {name!r} is empty" + (f" after leaving out {len(fits)} long examples" if fits else ""))
    return Tokenized([examples[i] for i in kept], [pairs[i][0] for i in kept], [pairs[i][1] for i in kept])


def joined(parts: Sequence[Tokenized]) -> Tokenized:
    """The rows of all parts, in order."""
    columns = ("examples", "prompts", "targets")
    return Tokenized(**{name: [row for part in parts for row in getattr(part, name)] for name in columns})


def sequence(data: Tokenized, row: int, *, prompt_weight: float = 0.0, prompts_only: bool = False) -> Tokens:
    """Prompt and target of a row as one sequence, and their weights as targets; `prompts_only` omits the target."""
    prompt, target = data.prompts[row], data.targets[row][: 0 if prompts_only else None]
    weights = np.repeat(np.float32([prompt_weight, 1]), [len(prompt), len(target)])
    weights[:1] = 0  # the start marker is given, not predicted
    return np.concatenate([prompt, target]), weights


def collate(
    data: Tokenized,
    rows: Sequence[int],
    *,
    batch: int,
    length: int,
    prompts_only: bool = False,
    here: Sequence[int] | None = None,
) -> dict:
    """Right-padded arrays of the given rows: `ids` (B,), `tokens` (B, T), `weights` (B, T), `prompt_length` (B,).

    Padding rows up to `batch` have id -1, weight 0 and a prompt of one pad. `prompts_only` omits the targets. `here`
    are the places of the batch to make (default: all).
    """
    here = range(batch) if here is None else here
    out = {"ids": np.full(len(here), -1, np.int32), "prompt_length": np.ones(len(here), np.int32)}
    for b, row in enumerate(rows[place] for place in here if place < len(rows)):
        out["ids"][b], out["prompt_length"][b] = data.examples[row].id, len(data.prompts[row])
    held = [[place] if place < len(rows) else [] for place in here]
    arrays = fill(held, length, lambda place: sequence(data, rows[place], prompts_only=prompts_only))
    return out | {key: arrays[key] for key in ("tokens", "weights")}


def steps_per_epoch(examples: int, batch: int) -> int:
    """Number of batches in one epoch; the last one may be smaller."""
    return -(-examples // batch)


def evaluation_batches(
    data: Tokenized,
    *,
    batch: int,
    buckets: Sequence[int],
    prompts_only: bool = False,
    only: Sequence[int] | None = None,
    here: Sequence[int] | None = None,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Each row of the split once, shortest first to reduce padding: row numbers (at most B) and the batch.

    `only` are the rows to take, `here` the places of a batch to make (default: all).
    """
    lengths = np.array([len(p) for p in data.prompts], np.int32) if prompts_only else data.lengths
    only = np.arange(len(data)) if only is None else np.asarray(only, int)
    order = only[np.argsort(lengths[only], kind="stable")]
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        length = pad_to(lengths[rows].max(), buckets)
        yield rows, collate(data, rows, batch=batch, length=length, prompts_only=prompts_only, here=here)


def shared_batches(
    data: Tokenized, packing: Packing, *, batch: int, buckets: Sequence[int], only: Sequence[int] | None = None
) -> Iterator[tuple[np.ndarray, dict]]:
    """As `evaluation_batches`, with rows that examples share: `tokens`, `weights` and `segments` (X, T), example b of
    the batch in segment b + 1.

    Each batch has every n-th example by length, so all take about the same room. Batches are whole: `only` leaves out
    those that have none of its rows.
    """
    order, count = np.argsort(data.lengths, kind="stable"), steps_per_epoch(len(data), batch)
    for rows in (order[first::count] for first in range(count)):
        if only is None or np.isin(rows, only).any():
            of = partial(_at, data, rows)
            yield rows, packing.batch(data.lengths[rows], of, full=batch, buckets=buckets)


def _at(data: Tokenized, rows: np.ndarray, place: int) -> Tokens:
    return sequence(data, rows[place])
