"""Training batches, a pure function of (seed, step), prefetched by Grain."""

import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from premem_jax.data.packing import ALONE, Packing, pad_to
from premem_jax.data.pipeline import Tokenized, sequence, steps_per_epoch


def batch_rows(lengths: Sequence[int], batch: int, seed: int, window: int = 1) -> grain.MapDataset:
    """Row numbers of batch t, for every t: each epoch is a new permutation of all rows.

    Each `window` of batches is sorted by `lengths` before it is split, so that rows of similar length share a batch and
    padding is small.
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
    start: int,
    stop: int,
    *,
    batch: int,
    seed: int,
    buckets: Sequence[int],
    window: int = 1,
    prompt_weight: float = 0.0,
    packing: Packing = ALONE,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Batches `start` to `stop - 1`, made ahead of time by Grain's reader threads: the ids of all examples and arrays.

    Ids (B,) are -1 where a row is missing. Arrays are `tokens` and `weights` (X, T), and `segments` where rows are
    shared, see `packing.py`. `buckets` are the padded lengths of single examples that may occur; without any, all
    batches have the length of the longest example.
    """
    lengths, shares = data.lengths, packing.shares(batch)
    layout = dict(full=batch, buckets=known(buckets, lengths))

    def make(rows: np.ndarray) -> dict:
        one = lambda i: sequence(data, rows[i], prompt_weight=prompt_weight)
        arrays = packing.batch(lengths[rows], one, **layout)
        return arrays if shares else {key: arrays[key] for key in ("tokens", "weights")}

    return read_ahead(make, data.ids, lengths, start, stop, batch=batch, seed=seed, window=window)


def known(buckets: Sequence[int], lengths: np.ndarray) -> tuple[int, ...]:
    """The `buckets`; without any, one that holds all `lengths`."""
    return tuple(buckets) or (pad_to(lengths.max(), ()),)


def read_ahead(
    make: Callable[[np.ndarray], dict],
    ids: np.ndarray,
    lengths: np.ndarray,
    start: int,
    stop: int,
    *,
    batch: int,
    seed: int,
    window: int = 1,
) -> Iterator[tuple[np.ndarray, dict]]:
    """`train_batches` of what `make(rows)` gives for some rows, of `ids` (E,) and `lengths` (E,)."""
    rows = batch_rows(lengths, batch, seed, window)

    def load(step: int) -> tuple[np.ndarray, dict]:
        picked = rows[step]
        missing = np.full(batch - len(picked), -1)
        return np.concatenate([ids[picked], missing]), make(picked)

    if start >= stop:
        return iter(())
    reader = grain.MapDataset.range(start, stop).map(load)
    return iter(reader.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def stacked(
    sources: Sequence[Callable[[int, int], Iterator[tuple[np.ndarray, dict]]]], start: int, stop: int
) -> Iterator[tuple[np.ndarray, dict]]:
    """The batches of a stack of members: those of all `sources` at one step, stacked along a leading member axis.

    Ids are (M, B), arrays (M, B, ...). Shorter arrays are padded with zeros to the longest of the step.
    """
    for batches in zip(*(source(start, stop) for source in sources), strict=True):
        ids, arrays = zip(*batches, strict=True)
        yield np.stack(ids), {key: _joined([mine[key] for mine in arrays]) for key in arrays[0]}


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    shape = np.max([part.shape for part in parts], axis=0)
    pad = lambda part: np.pad(part, [(0, most - size) for most, size in zip(shape, part.shape, strict=True)])
    return np.stack([pad(part) for part in parts])
