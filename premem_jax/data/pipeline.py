"""Tokenized examples, and batches of them whose content is a pure function of (seed, step)."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from premem_jax.data.examples import Example
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A split in tokens: row e of every field is the same example."""

    examples: Sequence[Example]
    prompts: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]

    @property
    def ids(self) -> np.ndarray:
        return np.array([example.id for example in self.examples], np.int32)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and target together (E,)."""
        return np.array([len(p) + len(t) for p, t in zip(self.prompts, self.targets, strict=True)], np.int32)

    def __len__(self) -> int:
        return len(self.examples)


def tokenize(
    name: str, examples: Sequence[Example], tokenizer: Tokenizer, *, context: int, drop_long: bool
) -> Tokenized:
    """All examples of the split `name` in tokens.

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


def pad_to(longest: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `longest` tokens; beyond the last bucket, the next multiple of 32."""
    return next((bucket for bucket in sorted(buckets) if bucket >= longest), -(-longest // 32) * 32)


def collate(
    data: Tokenized,
    rows: Sequence[int],
    *,
    batch: int,
    length: int,
    prompt_weight: float = 0.0,
    prompts_only: bool = False,
    here: Sequence[int] | None = None,
) -> dict:
    """Right-padded arrays of the given rows: `ids` (B,), `tokens` (B, T), `weights` (B, T), `prompt_length` (B,).

    Missing rows up to `batch` have id -1, weight 0 and a prompt of one pad. `prompts_only` leaves out the targets.
    `here` names the places of the batch that are made; all of them by default.
    """
    here = range(batch) if here is None else here
    out = {
        "ids": np.full(len(here), -1, np.int32),
        "tokens": np.zeros((len(here), length), np.int32),
        "weights": np.zeros((len(here), length), np.float32),
        "prompt_length": np.ones(len(here), np.int32),
    }
    for b, row in enumerate(rows[place] for place in here if place < len(rows)):
        prompt, target = data.prompts[row], data.targets[row][: 0 if prompts_only else None]
        end = len(prompt) + len(target)
        out["ids"][b] = data.examples[row].id
        out["tokens"][b, : len(prompt)] = prompt
        out["tokens"][b, len(prompt) : end] = target
        out["weights"][b, : len(prompt)] = prompt_weight
        out["weights"][b, len(prompt) : end] = 1
        out["prompt_length"][b] = len(prompt)
    out["weights"][:, 0] = 0  # the start marker is given, not predicted
    return out


def steps_per_epoch(examples: int, batch: int) -> int:
    """Batches in one epoch; the last one holds what is left."""
    return -(-examples // batch)


def batch_rows(lengths: Sequence[int], batch: int, seed: int, window: int = 1) -> grain.MapDataset:
    """Row numbers of batch t, for every t: each epoch is a fresh shuffle in which each row comes exactly once.

    `window` batches at a time are sorted by `lengths` before they are cut, so that with a window above 1, rows of
    similar length share a batch and little of it is padding.
    """
    examples = len(lengths)
    shuffled = grain.MapDataset.range(examples).seed(seed).shuffle()
    blocks = shuffled.batch(batch * window, batch_fn=lambda rows: sorted(rows, key=lambda row: lengths[row]))
    per_epoch, blocks_per_epoch = steps_per_epoch(examples, batch), steps_per_epoch(examples, batch * window)

    def rows_of(step: int) -> np.ndarray:
        epoch, index = divmod(step, per_epoch)
        block, place = divmod(index, window)
        rows = blocks.repeat()[epoch * blocks_per_epoch + block]
        return np.array(rows[place * batch : (place + 1) * batch], np.int32)

    return grain.MapDataset.range(sys.maxsize).map(rows_of)


def train_batches(
    data: Tokenized,
    *,
    batch: int,
    seed: int,
    buckets: Sequence[int],
    start: int,
    stop: int,
    window: int = 1,
    prompt_weight: float = 0.0,
    here: Sequence[int] | None = None,
) -> Iterator[dict]:
    """Collated batches `start` to `stop - 1`, made ahead of time by Grain's reader threads.

    `buckets` are the padded lengths that may occur; without any, all batches have the length of the longest example.
    `here` are the places of the batch that are made; `examples` (B,) has the ids of all, -1 where a row is missing.
    """
    lengths = data.lengths
    ids, rows = data.ids, batch_rows(lengths, batch, seed, window)
    buckets = tuple(buckets) or (pad_to(lengths.max(), ()),)

    def load(step: int) -> dict:
        picked = rows[step]
        length = pad_to(lengths[picked].max(), buckets)
        made = collate(data, picked, batch=batch, length=length, prompt_weight=prompt_weight, here=here)
        missing = np.full(batch - len(picked), -1)
        return made | {"examples": np.concatenate([ids[picked], missing])}

    if start >= stop:
        return iter(())
    reader = grain.MapDataset.range(start, stop).map(load)
    return iter(reader.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def evaluation_batches(
    data: Tokenized,
    *,
    batch: int,
    buckets: Sequence[int],
    prompts_only: bool = False,
    only: Sequence[int] | None = None,
    here: Sequence[int] | None = None,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Each row of the split once, shortest first so that padding is small: row numbers (at most B) and the batch.

    `only` names the rows to take, `here` the places of a batch to make; all of them by default.
    """
    lengths = np.array([len(p) for p in data.prompts], np.int32) if prompts_only else data.lengths
    only = np.arange(len(data)) if only is None else np.asarray(only, int)
    order = only[np.argsort(lengths[only], kind="stable")]
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        length = pad_to(lengths[rows].max(), buckets)
        yield rows, collate(data, rows, batch=batch, length=length, prompts_only=prompts_only, here=here)
