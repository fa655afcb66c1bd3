"""Rows of a file that a model is evaluated on: `{prompt, target}` as JSON lines, and `id` and `answer` if there are."""

import json
from typing import NamedTuple

from premem_jax import storage
from premem_jax.data.examples import Example
from premem_jax.data.sources import jsonl
from premem_jax.errors import UserError


class Rows(NamedTuple):
    """Examples in the order of the file, each with its row number as id; `ids` are the names that the file gives."""

    examples: list[Example]
    ids: list[int | str]
    checksum: str  # SHA-256 of the file


def read(path: str, *, graded: bool) -> Rows:
    """All rows of `path`. Prompt and target are joined as they are, so a target usually begins with a space.

    Args:
      graded: whether every row must have an `answer` (a number is taken as its text).

    Raises:
      UserError: the file cannot be read, is empty, or a line is no such row; the line is named.
    """
    if not path:
        raise UserError("data.path is empty; give it a file of rows {prompt, target}, one JSON object per line")
    try:
        data = storage.path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read ({error.strerror or error})") from error
    documents = jsonl(data, path)
    if not documents.items:
        raise UserError(f"data.path={path}: the file is empty")
    rows = [_row(number, where, text, graded) for number, (where, text) in enumerate(documents.items)]
    return Rows([example for example, _ in rows], [id for _, id in rows], documents.checksum)


def _row(number: int, where: str, text: bytes, graded: bool) -> tuple[Example, int | str]:
    try:
        item = json.loads(text.decode("utf-8"))
        prompt, target = item["prompt"], item["target"]
        id, answer = item.get("id", number), item.get("answer")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: not a row {{prompt, target}}: {type(error).__name__} {error}") from error
    if not isinstance(prompt, str) or not isinstance(target, str):
        raise UserError(f"{where}: prompt and target must be strings")
    if not isinstance(id, int | str):
        raise UserError(f"{where}: id must be a number or a string, not {id!r}")
    if graded and not isinstance(answer, str | int | float):
        raise UserError(f"{where}: data.task is set, so responses are graded, but the row has no answer")
    if graded and "\n" in str(answer):
        raise UserError(f"{where}: the answer has several lines; give the final answer alone")
    return Example(number, prompt, target, str(answer) if graded else ""), id
