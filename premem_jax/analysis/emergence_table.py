"""The table from which emergence is forecast: a row for each (model, amount of finetuning data, subset).

Columns, of JSON lines, CSV or Parquet:

  loss          pretraining loss of the model in nats per token, on one held-out text for all
  amount        finetuning examples; 0: not finetuned, evaluated few-shot
  accuracy      on the task, from -1 to 1 (also a correlation)
  subset        which draw of the finetuning examples (default: one draw), up to 100 characters
  model         name of the model (default: its loss), up to 100 characters
  items         test items of which the accuracy is the mean, as weight (default: as many for all)
  gold_logprob  mean log-likelihood of the right answer in nats, for a baseline
  pass_rate     share of sampled answers that are right, which may be far below one item, for a baseline
  flops         of the model's pretraining, for a baseline and to say how far ahead a forecast is

All but the first three are optional; the last three may also be left out of single rows (null, empty, NaN).
"""

import csv
import difflib
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils.epath import Path

from premem_jax import strict_json
from premem_jax.analysis.readers.table import parquet
from premem_jax.errors import UserError

NEEDED = ("loss", "amount", "accuracy")
NUMBERS = ("gold_logprob", "pass_rate", "flops")  # where they were measured
COLUMNS = (*NEEDED, "subset", "model", "items", *NUMBERS)
KINDS = (".jsonl", ".csv", ".parquet")
LONGEST = 100  # characters of a name
PLAIN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)  # a number as text


class Rows(NamedTuple):
    """Columns of equal length (N,). `amount` 0 is few-shot; NaN where an optional number was not measured."""

    loss: np.ndarray
    amount: np.ndarray
    accuracy: np.ndarray
    subset: np.ndarray
    model: np.ndarray
    items: np.ndarray
    gold_logprob: np.ndarray
    pass_rate: np.ndarray
    flops: np.ndarray

    def where(self, chosen: np.ndarray) -> "Rows":
        """The rows of a mask, or of row numbers, which may come several times."""
        return Rows(*(column[chosen] for column in self))

    @property
    def finetuned(self) -> "Rows":
        return self.where(self.amount > 0)

    @property
    def fewshot(self) -> "Rows":
        return self.where(self.amount == 0)


def make(loss, amount, accuracy, **others) -> Rows:
    """Rows of arrays, with the defaults of what is left out."""
    loss, amount, accuracy = (np.asarray(x, float) for x in (loss, amount, accuracy))
    given = {
        "subset": np.full(len(loss), "0"),
        "model": np.array([f"{x:.12g}" for x in loss]),
        "items": np.ones(len(loss)),
        **{name: np.full(len(loss), np.nan) for name in NUMBERS},
    } | {name: np.asarray(column) for name, column in others.items()}
    return Rows(loss, amount, accuracy, **given)


def checksum(rows: Rows) -> str:
    """SHA-256 of the rows in their order."""
    text = "\n".join("\t".join(map(repr, (x.item() for x in row))) for row in zip(*rows, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path) -> tuple[Rows, list[str]]:
    """The rows of a file, each counted once, and notes on what was left out.

    Two subsets of one amount that have the same accuracy with every model are one set drawn twice, as happens with the
    full set: the second one is left out.

    Raises:
      UserError: a file that cannot be read, a column that is missing or unknown, or a row that does not fit; the row is
        named.
    """
    if path.suffix not in KINDS:
        raise UserError(f"{path}: a table is a file {', '.join('*' + kind for kind in KINDS)}")
    columns = _columns(path)
    if missing := [name for name in NEEDED if name not in columns]:
        raise UserError(f"{path}: no column {', '.join(missing)}; a table has {', '.join(NEEDED)}")
    if other := [name for name in columns if name not in COLUMNS]:
        near = difflib.get_close_matches(other[0], COLUMNS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COLUMNS)}"
        raise UserError(f"{path}: no column is called {other[0]!r:.80}; {hint}")
    if not columns["loss"]:
        raise UserError(f"{path}: the table has no rows")
    values = {name: [_value(path, i, name, x) for i, x in enumerate(column, 1)] for name, column in columns.items()}
    return once(_rows(path, values), str(path))


def once(rows: Rows, where: str = "the table") -> tuple[Rows, list[str]]:
    """Every row once, and notes on those left out.

    Raises:
      UserError: one (model, amount, subset) with two accuracies, or one model with two losses.
    """
    seen: dict[tuple, int] = {}
    losses: dict[str, float] = {}
    for i, (model, amount, subset, loss) in enumerate(
        zip(rows.model, rows.amount, rows.subset, rows.loss, strict=True)
    ):
        if losses.setdefault(model, loss) != loss:
            raise UserError(f"{where}, row {i + 1}: model {model} has the losses {losses[model]:g} and {loss:g}")
        first = seen.setdefault((model, amount, subset), i)
        if rows.accuracy[first] != rows.accuracy[i]:
            raise UserError(
                f"{where}, row {i + 1}: model {model}, amount {amount:g}, subset {subset} is in row {first + 1} with "
                "another accuracy; give each draw of the data a subset of its own"
            )
    kept = rows.where(np.array(sorted(seen.values())))
    notes = [f"{len(rows.loss) - len(seen)} rows repeat others and count once"] * (len(seen) < len(rows.loss))
    twins = _twins(kept)
    for amount, first, second in twins:
        kept = kept.where((kept.amount != amount) | (kept.subset != second))
        notes.append(f"subsets {first} and {second} of {amount:g} examples agree everywhere and count once")
    return kept, notes


def _twins(rows: Rows) -> list[tuple[float, str, str]]:
    """(amount, subset, later subset) where both have the same models with the same accuracies, two at least."""
    found = []
    for amount in np.unique(rows.amount[rows.amount > 0]):
        groups: dict[tuple, str] = {}
        here = rows.where(rows.amount == amount)
        for subset in dict.fromkeys(here.subset):
            mine = here.where(here.subset == subset)
            key = tuple(sorted(zip(mine.model, mine.accuracy, strict=True)))
            if len(key) > 1 and groups.setdefault(key, subset) != subset:
                found.append((float(amount), groups[key], subset))
    return found


# ---- From a file -----------------------------------------------------------------------------------------------------


def _columns(path: Path) -> Mapping[str, Sequence]:
    if not path.exists() or path.is_dir():
        raise UserError(f"{path}: there is no such file")
    if path.suffix == ".parquet":
        return {name: column.tolist() for name, column in parquet(path).items()}
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return _csv(path, data) if path.suffix == ".csv" else _jsonl(path, data)


def _jsonl(path: Path, data: bytes) -> dict[str, list]:
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    items = [strict_json.loads(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}:{number}: not a row {{{', '.join(NEEDED)}}}")
        if missing := [name for name in NEEDED if name not in item]:
            raise UserError(f"{path}:{number}: {', '.join(missing)} missing")
    names = dict.fromkeys((*NEEDED, *(name for item in items for name in item)))
    return {name: [item.get(name) for item in items] for name in names}


def _csv(path: Path, data: bytes) -> dict[str, list]:
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no CSV in UTF-8 ({error})") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{path}: the file is empty")
    names = [name.strip() for name in lines[0]]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have the same name")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(names):
            raise UserError(f"{path}, row {number}: {len(line)} values for {len(names)} columns")
    return {name: [line[at].strip() for line in lines[1:]] for at, name in enumerate(names)}


# ---- Values ----------------------------------------------------------------------------------------------------------

# What a number must be, in words, and whether it is.
LIMITS = {
    "loss": ("a loss in nats, above 0", lambda x: 0 < x < 1e3),
    "amount": ("a whole number of examples, 0 for few-shot", lambda x: 0 <= x <= 1e12 and x == int(x)),
    "accuracy": ("from -1 to 1", lambda x: -1 <= x <= 1),
    "items": ("a whole number of test items, 1 at least", lambda x: 1 <= x <= 1e12 and x == int(x)),
    "gold_logprob": ("a log-likelihood, 0 at most", lambda x: -1e6 < x <= 0),
    "pass_rate": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "flops": ("above 0", lambda x: 0 < x < 1e40),
}


def _value(path: Path, row: int, name: str, value):
    """A number, NaN for an optional one that is not there, or a name."""
    where = f"{path}, row {row}: {name}"
    empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    if name in ("subset", "model"):
        if empty or isinstance(value, bool) or not isinstance(value, int | float | str):
            raise UserError(f"{where} must be a name or a number, not {value!r:.80}")
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if len(text) > LONGEST:  # arrays of text have the width of their longest
            raise UserError(f"{where} is a name of {len(text):,} characters, {text!r:.80}; at most {LONGEST} are read")
        return text
    says, allows = LIMITS[name]
    if empty and name in NUMBERS:
        return math.nan
    try:
        plain = not isinstance(value, str) or PLAIN.fullmatch(value)  # Python reads 1_000 and other scripts' digits
        number = float(value) if plain and not isinstance(value, bool | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not allows(number):
        raise UserError(f"{where}={value!r:.80}: must be {says}")
    return number


def _rows(path: Path, values: Mapping[str, list]) -> Rows:
    return make(**{name: np.array(column) for name, column in values.items()})
