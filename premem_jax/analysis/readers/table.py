"""Anybody's runs: one table with a row per (run, step, example), as Parquet or as an npz of columns."""

import zipfile
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils.epath import Path

from premem_jax.analysis.readers import release
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import Trace, line_up
from premem_jax.errors import UserError

REQUIRED = ("run", "step", "example", "nll", "n_samples", "n_correct", "test_accuracy")
SPLITS = ("train", "heldout")


def find(path: Path) -> list[Path]:
    """The tables at `path` or directly in it: npz files of the published layout are none, and neither is a trace."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    tables = [file for file in files if file.suffix in (".parquet", ".npz") and not file.name.startswith("step-")]
    return [file for file in tables if not release.is_packed(file)]


def read(files: list[Path]) -> list[Run]:
    """Reads the runs in `files`; a run lies in one file.

    Columns: `run` (its name), `step`, `example` (integer id), `nll` (mean nats per target token; NaN or null where not
    measured), `n_samples` and `n_correct` (0 where nothing was sampled), and `test_accuracy`, the same on all rows of
    a step (NaN where not measured). Optional: `split` (`train`, or `heldout` for examples that the run was not trained
    on), `epoch` and `task` (the same on all rows of a step). Any other column of numbers is a predictor measured at
    that step, such as `gradient_variance`.

    Raises:
      UserError: a file that cannot be read, a column that is missing or does not fit, or a row given twice.
    """
    runs: dict[str, Run] = {}
    for file in files:
        columns = _columns(file)
        names = columns["run"].astype(str)
        for name in np.unique(names):
            if name in runs:
                raise UserError(f"{file}: run {name!r} is in another file too; keep a run in one file.")
            runs[name] = _run(file, name, {key: column[names == name] for key, column in columns.items()})
    return list(runs.values())


def _columns(file: Path) -> dict[str, np.ndarray]:
    try:
        if file.suffix == ".npz":
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                columns = {key: arrays[key] for key in arrays.files}
        else:
            columns = {name: column.to_numpy() for name, column in _arrow(file).items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({error}); write it again.") from error
    if missing := [name for name in REQUIRED if name not in columns]:
        raise UserError(f"{file}: no column {', '.join(missing)}; a table of runs has {', '.join(REQUIRED)}.")
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or len(shapes["run"]) != 1 or not shapes["run"][0]:
        raise UserError(f"{file}: the columns are empty or not of one length: {shapes}.")
    _check(file, columns)
    return columns


def _arrow(file: Path) -> dict[str, pa.ChunkedArray]:
    with file.open("rb") as stream:
        table = pq.read_table(stream)
    return dict(zip(table.column_names, table.columns, strict=True))


def _check(file: Path, columns: Mapping[str, np.ndarray]) -> None:
    def wrong(bad: np.ndarray, what: str) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            raise UserError(f"{file}, row {at + 1}: {what} ({', '.join(f'{k}={columns[k][at]}' for k in REQUIRED)}).")

    for name in set(columns) - {"run", "split", "task"}:
        whole = name in ("step", "example", "n_samples", "n_correct")
        if columns[name].dtype.kind not in ("iu" if whole else "iuf"):
            raise UserError(f"{file}: column {name!r} should hold {'whole ' if whole else ''}numbers without gaps.")
    splits = columns.get("split", np.full(len(columns["run"]), "train"))
    wrong(~np.isin(splits.astype(str), SPLITS), f"split is none of {', '.join(SPLITS)}")
    wrong(columns["nll"] < 0, "nll is negative; it is minus the mean log-likelihood per token")
    wrong(
        (columns["n_correct"] < 0) | (columns["n_correct"] > columns["n_samples"]), "n_correct is not in 0..n_samples"
    )
    test = columns["test_accuracy"]
    wrong((test < 0) | (test > 1), "test_accuracy is not between 0 and 1")
    keys = np.stack([np.unique(x.astype(str), return_inverse=True)[1] for x in (columns["run"], splits)])
    keys = np.stack([*keys, columns["step"], columns["example"]], axis=1)
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, axis=0, return_index=True)[1]] = True
    wrong(~first, "the same run, split, step and example as an earlier row")


def _run(file: Path, name: str, columns: Mapping[str, np.ndarray]) -> Run:
    steps, at = np.unique(columns["step"], return_inverse=True)
    split = columns.get("split", np.full(len(at), "train")).astype(str)
    if not (split == "train").any():
        raise UserError(f"{file}: run {name!r} has no example of split 'train'.")

    def per_step(key: str) -> np.ndarray:
        values = [np.unique(columns[key][at == m]) for m in range(len(steps))]
        if odd := [int(steps[m]) for m, value in enumerate(values) if len(value) > 1]:
            raise UserError(f"{file}: run {name!r} has several values of {key} at step {odd[0]}; it is one per step.")
        return np.concatenate(values)

    def rows(which: str, m: int) -> dict[str, np.ndarray]:
        here = (split == which) & (at == m)
        names = dict(example="example", target_nll="nll", samples="n_samples", correct="n_correct")
        return {ours: columns[theirs][here] for ours, theirs in names.items()}

    splits = {
        str(which): line_up([rows(which, m) for m in range(len(steps))], which, file) for which in np.unique(split)
    }
    epochs = per_step("epoch") if "epoch" in columns else np.arange(1, 1 + len(steps))
    tasks = np.unique(columns["task"].astype(str)) if "task" in columns else ["table"]
    if len(tasks) > 1:
        raise UserError(f"{file}: run {name!r} is of several tasks: {', '.join(tasks)}.")
    extra = sorted(set(columns) - {*REQUIRED, "split", "epoch", "task"})
    return Run(
        name,
        str(tasks[0]),
        Trace(steps.astype(np.int64), epochs.astype(np.float64), splits),
        per_step("test_accuracy").astype(np.float64),
        measures={key: per_step(key).astype(np.float64) for key in extra},
    )
