"""People's own rows, from JSON Lines or Parquet: what the model is asked, what it should say, and the final answer.

A row has one of the pairs of fields of `FORMS`, or the fields that two templates name, or a conversation `messages`,
which a chat template writes. It may also have `answer`, the final answer or a solution with it, and `id`. All that
reads own rows goes through here.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from premem_jax import strict_json
from premem_jax.data.examples import CUE, FIELD, Example, number_text
from premem_jax.data.sources import jsonl, sha256
from premem_jax.errors import UserError
from premem_jax.running import storage


class Form(NamedTuple):
    """Templates of prompt and target, in which `{name}` stands for a field of the row."""

    prompt: str
    target: str

    @property
    def fields(self) -> list[str]:
        return FIELD.findall(self.prompt + self.target)


FORMS = (
    Form("{prompt}", "{target}"),  # joined as they are, so a target usually begins with a space
    Form("{question}" + CUE, " {answer}"),
    Form("{problem}" + CUE, " {solution}"),
)
Answer = Callable[[str, str, object], str]


class Rows(NamedTuple):
    """Examples in the order of the file, each with its row number as id; `names` are the ids in the file."""

    examples: list[Example]
    names: list[int | str]
    checksum: str  # SHA-256 of the file; empty of rows that come from none


def read(path: str, answer_of: Answer | None, *, prompt: str = "", target: str = "") -> Rows:
    """All rows of the file at `path`.

    Args:
      answer_of: (where, target, the row's `answer` or None) -> the final answer; None: no answers are needed.
      prompt, target: templates, each with a field, where the rows have none of the usual pairs of fields.

    Raises:
      UserError: the file cannot be read or is empty, or a row is none; file, row and field are named.
    """
    items, checksum = _items(path)
    return parse(items, answer_of, prompt=prompt, target=target)._replace(checksum=checksum)


def parse(items: Iterable[tuple[str, object]], answer_of: Answer | None, *, prompt: str = "", target: str = "") -> Rows:
    """The rows of pairs (where, item), as `read` takes those of a file, and raises.

    `where` is for messages.
    """
    forms = (Form(prompt, target),) if prompt else FORMS
    rows = [_row(number, where, item, forms, answer_of) for number, (where, item) in enumerate(items)]
    return Rows([example for example, _ in rows], [id for _, id in rows], "")


def _items(path: str) -> tuple[list[tuple[str, object]], str]:
    if not path:
        raise UserError("data.path is empty; give it a file of rows {prompt, target}, one JSON object per line")
    try:
        data = storage.path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read ({error.strerror or error})") from error
    if path.endswith(".parquet"):
        items = [(f"{path}, row {number}", item) for number, item in enumerate(_parquet(path, data))]
    else:
        items = [(where, _json(where, text)) for where, text in jsonl(data, path).items]
    if not items:
        raise UserError(f"data.path={path}: the file is empty")
    return items, sha256(data)


def _json(where: str, text: bytes) -> object:
    try:
        return strict_json.loads(text, where)
    except UserError as error:
        raise UserError(f"{where}: not a row, a JSON object: {str(error).removeprefix(f'{where}: ')}") from error


def _parquet(path: str, data: bytes) -> list[dict]:
    try:
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True).to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(f"data.path={path}: not a whole Parquet file ({error})") from error


def _row(number: int, where: str, item, forms: tuple[Form, ...], answer_of) -> tuple[Example, int | str]:
    there = item if isinstance(item, dict) else {}
    form = next((form for form in forms if all(there.get(name) is not None for name in form.fields)), None)
    messages: tuple[tuple[str, str], ...] = ()
    if form is None and forms is FORMS and there.get("messages") is not None:
        *messages, (_, target) = _messages(where, there["messages"])
        prompt = "\n\n".join(text for _, text in messages)
    elif form is None:
        wanted = " or ".join("{" + ", ".join(form.fields) + "}" for form in forms)
        wanted += " or {messages}" if forms is FORMS else ""
        found = ", ".join(map(str, there))[:200] or "nothing"
        raise UserError(f"{where}: not a row {wanted}, it has {found}; data.prompt and data.target name other fields")
    else:
        texts = {name: _text(where, name, there[name]) for name in form.fields}
        prompt, target = (FIELD.sub(lambda field: texts[field[1]], template) for template in form)
    id = there.get("id", number)
    if isinstance(id, bool) or not isinstance(id, int | str):
        raise UserError(f"{where}: id must be a whole number or a string, not {id!r:.80}")
    answer = "" if answer_of is None else answer_of(where, target, there.get("answer"))
    metadata = {} if id == number else {"id": str(id)}
    return Example(number, prompt, target, answer, metadata, messages=tuple(messages)), id


def _messages(where: str, said) -> list[tuple[str, str]]:
    """Role and text of each message; the last is what the model should say."""
    if not isinstance(said, list) or len(said) < 2:
        raise UserError(f"{where}: messages must be a list of at least two {{role, content}}, not {said!r:.80}")
    for i, message in enumerate(said):
        there = message if isinstance(message, dict) else {}
        if not all(isinstance(there.get(key), str) for key in ("role", "content")):
            raise UserError(f"{where}: messages[{i}] must be {{role, content}}, two texts, not {message!r:.80}")
    if said[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last of messages must be the assistant's, not the {said[-1]['role']}'s")
    return [(message["role"], message["content"]) for message in said]


def _text(where: str, name: str, value) -> str:
    """A field as text; numbers are texts in all but `prompt` and `target`, which are joined as they are."""
    if isinstance(value, str):
        return value
    if name in FORMS[0].fields or isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {name} must be a string, not {value!r:.80}")
    try:
        return number_text(value)
    except ValueError as error:  # as an empty cell becomes NaN
        raise UserError(f"{where}: {name} is empty or no number ({error})") from error
