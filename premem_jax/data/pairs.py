"""Pairs of responses to one prompt: checks of a pair, and batches with both responses."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.data.packing import ALONE, Packing
from premem_jax.data.pipeline import Tokenized, sequence
from premem_jax.data.reader import known, read_ahead
from premem_jax.errors import UserError

if TYPE_CHECKING:
    from premem_jax.data.tokenizers import Tokenizer

log = logging.getLogger(__name__)

SHOWN = 5  # ids of each kind in a message
KINDS = {
    "equal": "chosen and rejected are the same text",
    "empty": "a response without text",
    "no common prompt": "nothing that is said before both responses",
    "too long": "prompt and response have more tokens than data.context",
    "seam inside a token": "a token holds the end of the prompt and the beginning of a response",
}


def tokenize_pairs(
    name: str, examples: Sequence[Example], tokenizer: "Tokenizer", *, context: int, drop: bool, drop_long: bool
) -> Tokenized:
    """Tokenizes the pairs of the split `name`, with `rejected`; both responses of a pair have the same prompt tokens.

    Args:
      drop: omit unfit pairs with a warning instead of refusing them; `drop_long` does so for long ones.

    Raises:
      UserError: unfit pairs that are not dropped, counted by kind and named; or no pair is left.
    """
    with_ = lambda text: [(e.prompt, text(e)) for e in examples]
    chosen, rejected = (tokenizer.encode_pairs(with_(text)) for text in (lambda e: e.target, lambda e: e.rejected))
    alone = [prompt for prompt, _ in tokenizer.encode_pairs(with_(lambda e: ""))]
    kinds = [fault(e, *tokens, context) for e, *tokens in zip(examples, chosen, rejected, alone, strict=True)]
    unfit = {kind: [e.id for e, mine in zip(examples, kinds, strict=True) if mine == kind] for kind in KINDS}
    unfit = {kind: ids for kind, ids in unfit.items() if ids}
    refused = {kind: ids for kind, ids in unfit.items() if not (drop or (drop_long and kind == "too long"))}
    if refused:
        raise UserError(
            f"split {name!r}: {sum(map(len, refused.values()))} of {len(examples)} pairs are unfit: {_named(refused)};"
            " fix them, or set data.bad_pairs=drop to leave them out"
        )
    if unfit:
        count = sum(map(len, unfit.values()))
        log.warning("split %s: %d of %d pairs left out: %s", name, count, len(examples), _named(unfit))
    kept = [i for i, kind in enumerate(kinds) if not kind]
    if not kept:
        raise UserError(f"split {name!r} has no pairs" + (f" after leaving out {len(kinds)}" if kinds else ""))
    take = lambda pairs, part: [pairs[i][part] for i in kept]
    return Tokenized([examples[i] for i in kept], take(chosen, 0), take(chosen, 1), take(rejected, 1))


def fault(example: Example, chosen, rejected, alone: np.ndarray, context: int) -> str:
    """The first of `KINDS` that applies to a pair, or nothing; `chosen` and `rejected` are (prompt, response)."""
    if not example.prompt.strip():
        return "no common prompt"
    if not (example.target.strip() and example.rejected.strip()):
        return "empty"
    if example.target == example.rejected:
        return "equal"
    if max(len(prompt) + len(response) for prompt, response in (chosen, rejected)) > context:
        return "too long"
    if not (np.array_equal(chosen[0], alone) and np.array_equal(rejected[0], alone)):
        return "seam inside a token"
    return ""


def _named(unfit: dict[str, list[int]]) -> str:
    each = [
        f"{len(ids)} {kind} ({KINDS[kind]}: {', '.join(map(str, ids[:SHOWN]))}{', ...' if len(ids) > SHOWN else ''})"
        for kind, ids in unfit.items()
    ]
    return "; ".join(each)


def answers(data: Tokenized, rejected: bool) -> Tokenized:
    """The split with one of its two responses as the target."""
    return dataclasses.replace(data, targets=data.rejected) if rejected else data


def pair_lengths(data: Tokenized, responses: int = 2) -> np.ndarray:
    """(E,) tokens of the prompt and the longer of the first `responses` of each pair."""
    return np.max([answers(data, bool(r)).lengths for r in range(responses)], axis=0)


def collate_pairs(
    data: Tokenized,
    rows: Sequence[int],
    *,
    batch: int,
    buckets: Sequence[int],
    responses: int = 2,
    reference_ER: np.ndarray | None = None,
    packing: Packing = ALONE,
) -> dict:
    """R responses to each of B prompts, chosen, then rejected, each after its prompt.

    `tokens`, `weights` and `segments` (X, T), see `packing.py`; `responses` (B, R), the segment of each, 0 where a
    prompt is missing; and `reference` (B, R), if given. Prompt b is in micro-batch b % A.
    """
    R, views = responses, [answers(data, bool(r)) for r in range(responses)]
    arrays = packing.batch(
        [len(view.prompts[row]) + len(view.targets[row]) for row in rows for view in views],
        lambda i: sequence(views[i % R], rows[i // R]),
        full=batch * R,
        buckets=buckets,
        part_of=lambda i: i // R % packing.micro_batches,
    )
    given = {"responses": np.arange(1, len(rows) * R + 1, dtype=np.int32).reshape(-1, R)}
    if reference_ER is not None:
        given["reference"] = reference_ER[rows, :R].astype(np.float32)
    whole = {key: np.pad(values, [(0, batch - len(rows)), (0, 0)]) for key, values in given.items()}
    return arrays | {key: values[list(packing.here(batch))] for key, values in whole.items()}


def pair_batches(
    data: Tokenized,
    start: int,
    stop: int,
    *,
    batch: int,
    seed: int,
    buckets: Sequence[int],
    window: int = 1,
    responses: int = 2,
    **options,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Batches `start` to `stop - 1` in the order of `train_batches`: ids of all pairs, and `collate_pairs`.

    `options` are its `reference_ER` and `packing`.
    """
    lengths = pair_lengths(data, responses)
    layout = dict(batch=batch, buckets=known(buckets, lengths), responses=responses, **options)
    make = partial(collate_pairs, data, **layout)
    return read_ahead(make, data.ids, lengths, start, stop, batch=batch, seed=seed, window=window)
