"""Your own pairs of responses: rows `{prompt, chosen, rejected}` of a JSON Lines file.

Prompt and response are concatenated, so a response usually begins with a space. A row without `prompt` has
two whole dialogues in the form of Anthropic's hh-rlhf: the prompt is what they share up to the last "\n\nAssistant:".
Further text fields of a row are further responses, which a probe can follow by their names.
"""

import os

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.data.sources import fields, jsonl
from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.tasks.task import Task

FREE_FORM = True
SIZES = ()  # as many as the file has
TURN = "\n\nAssistant:"


def GRADER(response: str, answer: str) -> bool:
    """Whether a response equals the chosen one."""
    return response.strip() == answer.strip()


def is_solution(text: str) -> bool:
    """Always false: a response is an answer."""
    return False


def final_answer(text: str) -> str:
    """The text itself."""
    return text


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """The pairs of the file `path`: `heldout` and `test` are drawn by `seed`; `train` is the rest, or a part of it.

    Raises:
      UserError: no file, a malformed row, or too few pairs.
    """
    if not path:
        raise UserError("data.path is empty; give it a file of rows {prompt, chosen, rejected}, one JSON object a line")
    splits = parts(read(path), sizes, seed, path)
    rest = splits["train"]
    return Task(splits, lambda: (text for e in rest for text in (e.prompt + e.target, e.prompt + e.rejected)))


def parts(examples: list[Example], sizes: dict[str, int], seed: int, path: str) -> dict[str, list[Example]]:
    """The examples of a file by split: `heldout` and `test` are drawn by `seed`; `train` is the rest, or a part of it.

    Raises:
      UserError: there are too few.
    """
    asked = sizes["train"] + sizes["heldout"] + sizes["test"]
    if asked > len(examples) or asked - sizes["train"] == len(examples):
        raise UserError(f"data: {asked} examples asked, and one more to train on; {path} has {len(examples)}")
    order = [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]
    aside, test = sizes["heldout"], sizes["test"]
    rest = order[aside + test :]
    splits = {
        "train": rest[: sizes["train"] or None],
        "heldout": order[:aside],
        "test": order[aside : aside + test],
    }
    return {name: sorted(mine, key=lambda e: e.id) for name, mine in splits.items() if mine}


def read(path: str | os.PathLike) -> list[Example]:
    """All pairs of a file; an example's id is its row, counted from 0."""
    try:
        data = storage.path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read ({error.strerror or error})") from error
    documents = jsonl(data, path)
    if not documents.items:
        raise UserError(f"data.path={path}: the file is empty")
    return [_pair(id, where, text) for id, (where, text) in enumerate(documents.items)]


def _pair(id: int, where: str, text: bytes) -> Example:
    row = fields(where, text, ("chosen", "rejected"))
    if odd := [key for key in ("prompt", "chosen", "rejected") if not isinstance(row.get(key, ""), str)]:
        raise UserError(
            f"{where}: {odd[0]} must be a text; a list of messages is to be written out as the model has it"
        )
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    others = {key: value for key, value in row.items() if isinstance(value, str)}
    more = {key: value for key, value in others.items() if key not in ("prompt", "chosen", "rejected")}
    if prompt is None:
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
        shared = chosen[:same]
        if TURN not in shared:
            found = ", ".join(map(str, row))[:200]
            raise UserError(
                f"{where}: no prompt, and the responses do not begin with one dialogue up to {TURN!r}; it has {found}; "
                "name the prompt prompt, which may be empty"
            )
        cut = shared.rfind(TURN) + len(TURN)
        prompt, chosen, rejected = shared[:cut], chosen[cut:], rejected[cut:]
    return Example(id, prompt, chosen, chosen, more, rejected=rejected)
