"""Runs of any trainer: a table with a row per (run, step, example), as Parquet or as an npz of columns."""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils.epath import Path

from premem_jax.analysis.readers import npz, release
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import Trace, line_up
from premem_jax.errors import UserError

REQUIRED = ("run", "step", "example", "nll", "n_samples", "n_correct", "test_accuracy")
TEXTS = ("run", "split", "task")
SPLITS = ("train", "heldout")
LARGEST = 2**62  # whole number; larger ones would be negative as int64
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


OURS = ("step-", "audit.parquet")  # evaluations, and the audit of a run's examples


def find(path: Path) -> list[Path]:
    """The tables at `path` or directly in it, without npz files of the published layout and what runs write there."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    tables = [file for file in files if file.suffix in (".parquet", ".npz") and not file.name.startswith(OURS)]
    return [file for file in tables if not release.is_packed(file)]


def read(files: list[Path]) -> list[Run]:
    """Reads the runs in `files`; each run must be in one file.

    Columns: `run` (its name), `step`, `example` (integer id), `nll` (mean nats per target token; NaN or null where not
    measured), `n_samples` and `n_correct` (0 where nothing was sampled), and `test_accuracy`, the same on all rows of
    a step (NaN where not measured). Optional: `split` (`train`, or `heldout` for examples outside the training set),
    `epoch` and `task` (the same on all rows of a step). Any other column of numbers is a predictor measured at that
    step, such as `gradient_variance`.

    Raises:
      UserError: a file that cannot be read, a column that is missing or does not fit, or a row given twice.
    """
    runs: dict[str, Run] = {}
    for file in files:
        columns, texts = _columns(file)
        order = _sorted(file, columns, texts)
        ends = np.flatnonzero(np.diff(columns["run"][order])) + 1
        for rows in np.split(order, ends):
            name = texts["run"][columns["run"][rows[0]]]
            if name in runs:
                raise UserError(f"{file}: run {cut(name)} is in another file too; keep a run in one file.")
            runs[name] = _run(file, name, {key: column[rows] for key, column in columns.items()}, texts)
    return list(runs.values())


def cut(name: str) -> str:
    """A foreign name, truncated for a message."""
    return repr(name if len(name) <= 100 else name[:100] + "…")


def _columns(file: Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The columns, with texts replaced by indices, and the sorted texts that these index."""
    packed = file.suffix == ".npz"
    columns = {name: npz.array(file, name) for name in npz.checked(file)} if packed else parquet(file)
    if missing := [name for name in REQUIRED if name not in columns]:
        raise UserError(f"{file}: no column {', '.join(missing)}; a table of runs has {', '.join(REQUIRED)}.")
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or len(shapes["run"]) != 1 or not shapes["run"][0]:
        raise UserError(f"{file}: the columns are empty or not of one length: {shapes}.")
    columns.setdefault("split", np.full(len(columns["run"]), "train"))
    texts = {}
    for name in TEXTS:
        if name in columns:
            try:
                columns[name], texts[name] = _numbered(columns[name])
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: column {name!r} holds bytes that are no text ({error}).") from error
    _check(file, columns, texts)
    return columns, texts


def _numbered(column: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Texts as indices into their sorted distinct values, and these values."""
    found: dict[str, int] = {}
    text = lambda value: value.decode() if isinstance(value, bytes) else str(value)
    at = np.array([found.setdefault(text(value), len(found)) for value in column.tolist()])
    names = sorted(found)
    place = np.empty(len(names), np.int64)
    place[[found[name] for name in names]] = np.arange(len(names))
    return place[at], names


def parquet(file: Path) -> dict[str, np.ndarray]:
    """The columns, without the index of pandas. Read from memory, because pyarrow may abort on a Python file."""
    try:
        table = pq.read_table(pa.BufferReader(file.read_bytes()), page_checksum_verification=True)
        if len(set(table.column_names)) < table.num_columns:
            raise ValueError("two columns have the same name")
        return {
            name: column.to_numpy()
            for name, column in zip(table.column_names, table.columns, strict=True)
            if not _PANDAS_INDEX.fullmatch(name)
        }
    except Exception as error:  # of a parser that is fed bytes of others
        why = " ".join(str(error).split())[:250]
        raise UserError(f"{file} cannot be read ({why}); write it again.") from error


def _check(file: Path, columns: Mapping[str, np.ndarray], texts: Mapping[str, list[str]]) -> None:
    def wrong(bad: np.ndarray, what: str) -> None:
        if bad.any():
            raise _at_row(file, int(np.argmax(bad)), columns, texts, what)

    for name in set(columns) - set(TEXTS):
        whole = name in ("step", "example", "n_samples", "n_correct")
        if columns[name].dtype.kind not in ("iu" if whole else "iuf"):
            raise UserError(f"{file}: column {cut(name)} should hold {'whole ' if whole else ''}numbers without gaps.")
        if whole:
            wrong(columns[name] > LARGEST, f"{name} is above {LARGEST}")
    wrong(~np.isin(texts["split"], SPLITS)[columns["split"]], f"split is none of {', '.join(SPLITS)}")
    wrong(np.isinf(columns["nll"]), "nll is infinite; where it was not measured it is NaN or null")
    wrong(columns["nll"] < 0, "nll is negative; it is minus the mean log-likelihood per token")
    wrong(
        (columns["n_correct"] < 0) | (columns["n_correct"] > columns["n_samples"]), "n_correct is not in 0..n_samples"
    )
    test = columns["test_accuracy"]
    wrong((test < 0) | (test > 1), "test_accuracy is not between 0 and 1")


def _sorted(file: Path, columns: Mapping[str, np.ndarray], texts: Mapping[str, list[str]]) -> np.ndarray:
    """The rows by run, split, step and example, of which no two may be the same."""
    keys = [columns[key] for key in ("example", "step", "split", "run")]
    order = np.lexsort(keys)
    again = order[1:][np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0)]
    if len(again):
        raise _at_row(file, again.min(), columns, texts, "the same run, split, step and example as an earlier row")
    return order


def _at_row(file: Path, row: int, columns: Mapping, texts: Mapping, what: str) -> UserError:
    shown = {key: cut(texts[key][columns[key][row]]) if key in texts else columns[key][row] for key in REQUIRED}
    return UserError(f"{file}, row {row + 1}: {what} ({', '.join(f'{k}={v}' for k, v in shown.items())}).")


def _run(file: Path, name: str, columns: Mapping[str, np.ndarray], texts: Mapping[str, list[str]]) -> Run:
    steps, at = np.unique(columns["step"], return_inverse=True)
    split = np.array(texts["split"])[columns["split"]]
    if not (split == "train").any():
        raise UserError(f"{file}: run {cut(name)} has no example of split 'train'.")

    def per_step(key: str) -> np.ndarray:
        values = [np.unique(columns[key][at == m]) for m in range(len(steps))]
        if odd := [int(steps[m]) for m, value in enumerate(values) if len(value) > 1]:
            raise UserError(
                f"{file}: run {cut(name)} has several values of {cut(key)} at step {odd[0]}; it is one per step."
            )
        return np.concatenate(values)

    def rows(which: str, m: int) -> dict[str, np.ndarray]:
        here = (split == which) & (at == m)
        names = dict(example="example", target_nll="nll", samples="n_samples", correct="n_correct")
        return {ours: columns[theirs][here] for ours, theirs in names.items()}

    splits = {
        str(which): line_up([rows(which, m) for m in range(len(steps))], which, file) for which in np.unique(split)
    }
    epochs = per_step("epoch") if "epoch" in columns else np.arange(1, 1 + len(steps))
    tasks = [texts["task"][i] for i in np.unique(columns["task"])] if "task" in columns else ["table"]
    if len(tasks) > 1:
        raise UserError(f"{file}: run {cut(name)} is of several tasks: {', '.join(map(cut, tasks))}.")
    extra = sorted(set(columns) - {*REQUIRED, *TEXTS, "epoch"})
    return Run(
        name,
        tasks[0],
        Trace(steps.astype(np.int64), epochs.astype(np.float64), splits),
        per_step("test_accuracy").astype(np.float64),
        measures={key: per_step(key).astype(np.float64) for key in extra},
    )
