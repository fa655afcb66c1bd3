"""People's own rows, from JSON Lines, Parquet or Arrow: what is asked, what should be said, and the final answer.

All rows have one of the pairs of fields of `FORMS`, or the fields that two templates name, or a conversation
`messages`, which a chat template writes. They may also have `answer`, the final answer or a solution with it, and `id`.
All that reads own rows goes through here.
"""

import codecs
from collections.abc import Callable, Iterable, Sequence
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
CONVERSATION = Form("{messages}", "")
HEADS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "compressed"}  # of files that are no UTF-8
Answer = Callable[[str, str, object], str]


class Rows(NamedTuple):
    """Examples in the order of the file, each with its row number as id; `names` are the ids in the file."""

    examples: list[Example]
    names: list[int | str]
    checksum: str  # SHA-256 of the file, or of the checksums of several; empty of rows that come from none


def read(path: str | Sequence[str], answer_of: Answer | None, *, prompt: str = "", target: str = "") -> Rows:
    """All rows of the file at `path`, or of several files one after another.

    Args:
      path: of JSON Lines, Parquet (`.parquet`) or an Arrow stream (`.arrow`, as `datasets` saves).
      answer_of: (where, target, the row's `answer` or None) -> the final answer; None: no answers are needed.
      prompt, target: templates, each with a field, where the rows have none of the usual pairs of fields.

    Raises:
      UserError: a file cannot be read or is empty, or a row is none; file, row and field are named.
    """
    items, checksum = items_of(path)
    return parse(items, answer_of, prompt=prompt, target=target)._replace(checksum=checksum)


def parse(
    items: Iterable[tuple[str, object]],
    answer_of: Answer | None,
    *,
    prompt: str = "",
    target: str = "",
    others: Sequence[Form] = (),
) -> Rows:
    """The rows of pairs (where, item), as `read` takes those of a file, and raises.

    `where` is for messages. `others` are forms after the usual ones.
    """
    if bool(prompt) != bool(target):
        raise UserError("data.prompt and data.target: give both, or neither")
    there = list(items)
    form = _form(there, (Form(prompt, target),) if prompt else (*FORMS, CONVERSATION, *others))
    rows = [_row(number, where, item, form, answer_of) for number, (where, item) in enumerate(there)]
    first: dict[object, str] = {}
    for (where, item), (_, id) in zip(there, rows, strict=True):
        if "id" in item and first.setdefault(id, where) != where:
            raise UserError(f"{where}: the id {id!r:.80} is that of {first[id]}; make ids unique, or leave them out")
    return Rows([example for example, _ in rows], [id for _, id in rows], "")


def checksum_of(paths: Sequence[str]) -> str:
    """SHA-256 of the checksums of files, without a look at their rows. Raises UserError for one that cannot be read."""
    return sha256("".join(sha256(_bytes(path)) for path in paths).encode())


def items_of(path: str | Sequence[str]) -> tuple[list[tuple[str, object]], str]:
    """Place and content of each row of one file or several, and the checksum. Raises UserError as `read` does."""
    found = [_items(each) for each in ([path] if isinstance(path, str) else path)]
    checksums = [checksum for _, checksum in found]
    whole = checksums[0] if len(checksums) == 1 else sha256("".join(checksums).encode())
    return [item for items, _ in found for item in items], whole


def _items(path: str) -> tuple[list[tuple[str, object]], str]:
    if not path:
        raise UserError("data.path is empty; give it a file of rows {prompt, target}, one JSON object per line")
    data = _bytes(path)
    if path.endswith((".parquet", ".arrow")):
        items = [(f"{path}, row {number}", item) for number, item in enumerate(_table(path, data))]
    elif kind := HEADS.get(data[:2]):
        raise UserError(f"data.path={path}: the file is {kind}; write it as plain UTF-8, one JSON object per line")
    else:
        lines = jsonl(data.removeprefix(codecs.BOM_UTF8), path).items
        items = [(where, _json(where, text)) for where, text in lines if text.strip()]
    if not items:
        raise UserError(f"data.path={path}: the file is empty")
    return items, sha256(data)


def _bytes(path: str) -> bytes:
    try:
        return storage.path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read ({error.strerror or error})") from error


def _json(where: str, text: bytes) -> object:
    try:
        return strict_json.loads(text, where)
    except UserError as error:
        why = str(error).removeprefix(f"{where}: ")
        raise UserError(f"{where}: not a row, one whole JSON object in each line: {why}") from error


def _table(path: str, data: bytes) -> list[dict]:
    try:
        if path.endswith(".arrow"):
            table = pa.ipc.open_stream(data).read_all()
            table.validate(full=True)  # without which a damaged file ends the process
            return table.to_pylist()
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True).to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        kind = "stream of Arrow" if path.endswith(".arrow") else "Parquet file"
        raise UserError(f"data.path={path}: not a whole {kind} ({error})") from error


def _form(items: Sequence[tuple[str, object]], forms: Sequence[Form]) -> Form:
    """The first form whose fields all rows have. Raises UserError at the first row without those of the most rows."""
    fields = {form: form.fields for form in forms}
    has = lambda item, form: isinstance(item, dict) and all(item.get(name) is not None for name in fields[form])
    counts = [sum(has(item, form) for _, item in items) for form in forms]
    form, count = forms[counts.index(max(counts))], max(counts)
    if count == len(items):
        return form
    where, item = next((where, item) for where, item in items if not has(item, form))
    wanted = " or ".join("{" + ", ".join(form.fields) + "}" for form in ([form] if count else forms))
    if not isinstance(item, dict):
        found, mend = f"it is a {type(item).__name__}", "write one JSON object in each line"
    else:
        names = ", ".join(f"{name}{': null' * (value is None)}" for name, value in item.items())
        found = f"it has {names[:200] or 'nothing'}"
        mend = "templates name other fields, such as data.prompt='{ask}' with data.target=' {say}'"
        mend = "write all rows in one way, or leave this one out" if count else mend
    raise UserError(f"{where}: not a row {wanted}{' as the others' * (count > 0)}, {found}; {mend}")


def _row(number: int, where: str, there: dict, form: Form, answer_of) -> tuple[Example, int | str]:
    messages: tuple[tuple[str, str], ...] = ()
    if form == CONVERSATION:
        *messages, (_, target) = _messages(where, there["messages"])
        prompt, texts = "\n\n".join(text for _, text in messages), {}
    else:
        texts = {name: _text(where, name, there[name]) for name in form.fields}
        prompt, target = (FIELD.sub(lambda field: texts[field[1]], template) for template in form)
    whole = (texts if form in FORMS else {}) | ({"target": target} if form.prompt else {})
    if empty := [name for name, text in whole.items() if name != "prompt" and not text.strip()]:
        raise UserError(f"{where}: {empty[0]} is empty; fill it in, or leave the row out")
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
        kind = "a string" if name in FORMS[0].fields else "a string or a number"
        raise UserError(f"{where}: {name} must be {kind}, not {value!r:.80}; write the text itself there")
    try:
        return number_text(value)
    except ValueError as error:  # as an empty cell becomes NaN
        raise UserError(f"{where}: {name} is empty or no number ({error})") from error
