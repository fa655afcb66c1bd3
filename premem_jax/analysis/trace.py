"""The trace: what a run saw of each example at each evaluation, one Parquet file per evaluation.

Training writes it, analysis reads it, and neither knows the other. A trace from another trainer works as well: call
`write_evaluation` with its numbers.
"""

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils.epath import Path

from premem_jax import atomic
from premem_jax.analysis import premem
from premem_jax.errors import UserError

FORMAT = b"4"
_FORMAT_KEY = b"premem_jax.trace.format"
_MEASURES_KEY = b"premem_jax.trace.measures"
_DIGEST_KEY = b"premem_jax.trace.sha256"
_FILE_NAME = re.compile(r"step-(\d{8,})\.parquet")
_VALUES = ("target_nll", "log_confidence")  # NaN where not measured
_COUNTS = ("target_tokens", "samples", "correct", "unparsed", "decided_on_host", "skipped")
_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("epoch", pa.float32(), nullable=False),
        pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("example", pa.int64(), nullable=False),
        pa.field("target_nll", pa.float32()),
        pa.field("target_tokens", pa.int32(), nullable=False),
        pa.field("samples", pa.int32(), nullable=False),
        pa.field("correct", pa.int32(), nullable=False),
        pa.field("unparsed", pa.int32(), nullable=False),
        pa.field("decided_on_host", pa.int32(), nullable=False),
        pa.field("skipped", pa.int32(), nullable=False),
        pa.field("log_confidence", pa.float32()),
    ],
    metadata={_FORMAT_KEY: FORMAT},
)


@dataclass(frozen=True)
class SplitTrace:
    """One split over M evaluations and E examples; an example that an evaluation left out has NaN and zero there."""

    example: np.ndarray  # (E,) int64, ascending
    nll: np.ndarray  # (M, E) float64, mean nats per target token; NaN where the likelihood was not run
    tokens: np.ndarray  # (E,) int64, target tokens; 0 where never recorded
    samples: np.ndarray  # (M, E) int64, responses sampled
    correct: np.ndarray  # (M, E) int64
    unparsed: np.ndarray  # (M, E) int64, responses in which no answer was found
    decided_on_host: np.ndarray | int = 0  # (M, E) int64, responses that the device could not decide exactly
    skipped: np.ndarray | int = 0  # (M, E) int64, responses not sampled since the metric is 0 whatever they say
    log_confidence: np.ndarray | None = None  # (M, E) float64, log-probability of the greedy response, nats; NaN: no

    @property
    def accuracy(self) -> np.ndarray:
        """(M, E) float64: correct / samples, NaN where nothing was sampled."""
        nothing = np.full(self.samples.shape, np.nan)
        return np.divide(self.correct, self.samples, out=nothing, where=self.samples > 0)

    @property
    def accuracy_or_skipped(self) -> np.ndarray:
        """(M, E) float64: the accuracy, and 0 where sampling was skipped: what the metric is computed from.

        Such a row's target is memorized, so any accuracy there gives the same metric, at the threshold that the run
        skipped by and at every higher one.
        """
        return np.where(self.skipped_ME, 0.0, self.accuracy)

    @property
    def mean_accuracy(self) -> np.ndarray:
        """(M,) float64: the mean over the examples sampled, NaN where there are none.

        Also NaN where some were skipped. They are memorized ones, so the mean of the others would be too low.
        """
        return np.where(self.skipped_ME.any(axis=1), np.nan, premem.measured_mean(self.accuracy))

    @property
    def skipped_ME(self) -> np.ndarray:
        """(M, E) bool: where sampling was skipped."""
        return np.broadcast_to(np.asarray(self.skipped) > 0, self.samples.shape)


@dataclass(frozen=True)
class Trace:
    """A run over M evaluations, in the order of their steps."""

    steps: np.ndarray  # (M,) int64
    epochs: np.ndarray  # (M,) float64, passes over the training data
    splits: Mapping[str, SplitTrace]
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)  # (M,) each; NaN where not measured

    def split(self, name: str) -> SplitTrace:
        """The split called `name`; a UserError names the ones there are."""
        if name not in self.splits:
            raise UserError(f"The trace has no split {name!r}; it has: {', '.join(sorted(self.splits)) or 'none'}.")
        return self.splits[name]


def evaluation_path(folder: str | os.PathLike, step: int) -> Path:
    """The file of the evaluation at `step`."""
    return Path(folder) / f"step-{step:08d}.parquet"


def write_evaluation(
    folder: str | os.PathLike,
    step: int,
    epoch: float,
    splits: Mapping[str, Mapping[str, np.ndarray]],
    measures: Mapping[str, float] | None = None,
) -> None:
    """Writes one evaluation, whole or not at all; the same input gives the same bytes.

    Args:
      folder: the trace folder, made when missing.
      step: optimizer steps taken so far; an evaluation already there at this step is replaced.
      epoch: passes over the training data so far.
      splits: split name to columns of one length (E,): `example` (unique ids) and any of `target_nll` (mean nats per
        target token, NaN where not run), `target_tokens`, `samples`, `correct`, `unparsed`, `decided_on_host`,
        `skipped` (0 where left out), `log_confidence` (log-probability of the greedy response, NaN where not run).
      measures: values of the whole run at this step, such as `gradient_variance`.

    Raises:
      ValueError: an unknown column, unequal lengths, a repeated id, more verdicts than samples, or an
        example both sampled and skipped.
    """
    tables = [_split_table(step, epoch, name, splits[name]) for name in sorted(splits)]
    if not any(table.num_rows for table in tables):
        raise ValueError(f"The evaluation at step {step} has no rows.")
    buffer = io.BytesIO()
    values = {name: float(value) for name, value in sorted((measures or {}).items()) if math.isfinite(value)}
    metadata = {_FORMAT_KEY: FORMAT, _MEASURES_KEY: json.dumps(values).encode()}
    table = pa.concat_tables(tables).unify_dictionaries().replace_schema_metadata(metadata)
    table = table.replace_schema_metadata(metadata | {_DIGEST_KEY: _digest(table)})
    pq.write_table(table, buffer, compression="zstd")
    atomic.write_bytes(evaluation_path(folder, step), buffer.getvalue())


def evaluation_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the evaluations in `folder`, ascending; empty where there is no such folder.

    Leftover temporary files are passed over. Raises a UserError for a file without a readable Parquet footer (one cut
    short by another program): `write_evaluation` itself leaves none.
    """
    folder = Path(folder)
    matches = [_FILE_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted(int(match[1]) for match in matches if match)
    for step in steps:
        _open(evaluation_path(folder, step), pq.read_metadata)
    return steps


def read_trace(folder: str | os.PathLike, up_to: int | None = None) -> Trace:
    """Reads the evaluations in `folder`, those at steps <= `up_to` where it is given.

    Raises a UserError for no evaluation, a damaged file, another format version, or evaluations that do not belong
    together (an example whose number of target tokens changes).
    """
    steps = [step for step in evaluation_steps(folder) if up_to is None or step <= up_to]
    if not steps:
        until = "" if up_to is None else f" at or before step {up_to}"
        raise UserError(f"There is no evaluation{until} in {folder}; run the training first, or name another folder.")
    tables = [_read_evaluation(evaluation_path(folder, step)) for step in steps]
    names = sorted({name for table in tables for name in table["split"].unique().to_pylist()})
    measures = [json.loads(table.schema.metadata[_MEASURES_KEY]) for table in tables]
    return Trace(
        steps=np.array(steps, np.int64),
        epochs=np.array([table["epoch"][0].as_py() for table in tables], np.float64),
        splits={name: _join(folder, name, tables) for name in names},
        measures={
            name: np.array([values.get(name, np.nan) for values in measures])
            for name in sorted({name for values in measures for name in values})
        },
    )


def line_up(parts: Sequence[Mapping[str, np.ndarray]], name: str, source: str | os.PathLike) -> SplitTrace:
    """Lines up the rows of one split over M evaluations, by example id.

    Args:
      parts: of each evaluation, in order, the columns that `write_evaluation` takes.
      name, source: the split and the folder or file, for messages.

    Raises:
      UserError: an example whose number of target tokens changes.
    """
    example = np.unique(np.concatenate([np.asarray(part["example"], np.int64) for part in parts]))
    shape = (len(parts), len(example))
    values = {key: np.full(shape, np.nan) for key in _VALUES}
    counts = {key: np.zeros(shape, np.int64) for key in _COUNTS}
    for m, part in enumerate(parts):
        at = np.searchsorted(example, part["example"])
        for key, value in values.items():
            value[m, at] = part.get(key, np.nan)
        for key, count in counts.items():
            count[m, at] = part.get(key, 0)
    tokens_ME = counts["target_tokens"]
    tokens = tokens_ME.max(axis=0, initial=0)
    odd = np.any((tokens_ME != tokens) & (tokens_ME != 0), axis=0)
    if odd.any():
        raise UserError(
            f"In {source}, example {example[odd][0]} of split {name!r} changes its number of target tokens between "
            "evaluations: it mixes runs with different data or tokenizers. Keep one run per folder."
        )
    del counts["target_tokens"]
    return SplitTrace(example, values["target_nll"], tokens, **counts, log_confidence=values["log_confidence"])


def _split_table(step: int, epoch: float, name: str, columns: Mapping[str, np.ndarray]) -> pa.Table:
    arrays = {key: np.asarray(value) for key, value in columns.items()}
    unknown = set(arrays) - {"example", *_VALUES, *_COUNTS}
    if unknown or "example" not in arrays:
        raise ValueError(f"Split {name!r}: unknown columns {sorted(unknown)}, or no column 'example'.")
    shape = arrays["example"].shape
    shapes = {key: array.shape for key, array in arrays.items()}
    if len(shape) != 1 or set(shapes.values()) != {shape}:
        raise ValueError(f"Split {name!r}: the columns are not of one length: {shapes}.")
    order = np.argsort(arrays["example"], kind="stable")
    example = arrays["example"][order].astype(np.int64)
    if np.any(example[1:] == example[:-1]):
        raise ValueError(f"Split {name!r}: example id {example[1:][example[1:] == example[:-1]][0]} is repeated.")
    values = {key: arrays.get(key, np.full(shape, np.nan))[order].astype(np.float32) for key in _VALUES}
    counts = {key: arrays.get(key, np.zeros(shape, np.int32))[order].astype(np.int32) for key in _COUNTS}
    if any(np.any(count < 0) for count in counts.values()):
        raise ValueError(f"Split {name!r}: a count is negative.")
    if np.any(counts["samples"] < np.maximum(counts["correct"] + counts["unparsed"], counts["decided_on_host"])):
        raise ValueError(f"Split {name!r}: an example has more verdicts (correct, unparsed; decided) than samples.")
    if np.any((counts["skipped"] > 0) & (counts["samples"] > 0)):
        raise ValueError(f"Split {name!r}: an example is both sampled and skipped.")
    rows = len(example)
    columns = {
        "step": pa.array(np.full(rows, step, np.int32)),
        "epoch": pa.array(np.full(rows, epoch, np.float32)),
        "split": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name]),
        "example": pa.array(example),
        **{key: pa.array(value, mask=np.isnan(value)) for key, value in values.items()},
        **{key: pa.array(count) for key, count in counts.items()},
    }
    return pa.table(columns, schema=_SCHEMA)


def _open(path: Path, read):
    try:
        with path.open("rb") as file:
            return read(file)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The evaluation {path} cannot be read ({error}). It is cut short or damaged: "
            "delete the file and run again; the run recomputes that evaluation."
        ) from error


def _read_whole(file) -> pa.Table:
    table = pq.read_table(file)
    metadata = table.schema.metadata or {}
    if metadata.get(_FORMAT_KEY) == FORMAT and metadata[_DIGEST_KEY] != _digest(table):
        raise OSError("its values are not those that were written")
    return table


def _digest(table: pa.Table) -> bytes:
    """SHA-256 of the names and values of all columns and of the measures, however Parquet packs them.

    The checksums of Parquet leave out what says how its pages are to be read, and the measures.
    """
    digest = hashlib.sha256(table.schema.metadata[_MEASURES_KEY])
    for name in table.column_names:
        column = table[name]
        values = column.cast(pa.string()).to_pylist() if name == "split" else [column.to_numpy().tobytes().hex()]
        digest.update(json.dumps([name, str(column.type), values]).encode())
    return digest.hexdigest().encode()


def _read_evaluation(path: Path) -> pa.Table:
    table = _open(path, _read_whole)
    found = (table.schema.metadata or {}).get(_FORMAT_KEY)
    if found != FORMAT or not table.schema.equals(_SCHEMA):
        version = "no version" if found is None else f"version {found.decode(errors='replace')}"
        raise UserError(
            f"{path} has {version} of the trace format and columns {table.column_names}; this program reads version "
            f"{FORMAT.decode()}. Read it with the program that wrote it, or delete it and run again."
        )
    if table.num_rows == 0 or table["step"].unique().to_pylist() != [int(_FILE_NAME.fullmatch(path.name)[1])]:
        raise UserError(f"{path} does not hold the step that its name says. Give it its own name back, or delete it.")
    return table


def _join(folder: str | os.PathLike, name: str, tables: list[pa.Table]) -> SplitTrace:
    parts = []
    for table in tables:
        rows = table.filter(pc.equal(table["split"].cast(pa.string()), name))
        parts.append({key: rows[key].to_numpy() for key in ("example", *_VALUES, *_COUNTS)})
    return line_up(parts, name, folder)
