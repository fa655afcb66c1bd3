"""One evaluation of a trace as an Arrow table with a checksum, and the Parquet file that holds it."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils.epath import Path

from premem_jax.errors import UserError
from premem_jax.running.sealed import Damaged

FORMAT = b"7"
_FORMAT = b"premem_jax.trace.format"
_MEASURES = b"premem_jax.trace.measures"
_ABOUT = b"premem_jax.trace.about"
_DIGEST = b"premem_jax.trace.sha256"
VALUES = ("target_nll", "log_confidence")  # NaN where not measured
COUNTS = ("target_tokens", "samples", "correct", "unparsed", "decided_on_host", "skipped")
_HASHES = pa.list_(pa.field("element", pa.uint32(), nullable=False))  # Parquet's own name for what is in a list
_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("epoch", pa.float32(), nullable=False),
        pa.field("member", pa.dictionary(pa.int32(), pa.string()), nullable=False),
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
        pa.field("answers", _HASHES, nullable=False),
    ],
    metadata={_FORMAT: FORMAT},
)


def of_split(step: int, epoch: float, member: str, name: str, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows of one split, by example id.

    Raises:
      ValueError: as `trace.write_evaluation`.
    """
    arrays = {key: np.asarray(value) for key, value in columns.items()}
    answers = arrays.pop("answers", np.zeros((len(arrays.get("example", ())), 0), np.uint32))
    unknown = set(arrays) - {"example", *VALUES, *COUNTS}
    if unknown or "example" not in arrays:
        raise ValueError(f"Split {name!r}: unknown columns {sorted(unknown)}, or no column 'example'.")
    shape = arrays["example"].shape
    shapes = {key: array.shape for key, array in arrays.items()} | {"answers": answers.shape[:1]}
    if len(shape) != 1 or set(shapes.values()) != {shape}:
        raise ValueError(f"Split {name!r}: the columns are not of one length: {shapes}.")
    order = np.argsort(arrays["example"], kind="stable")
    example = arrays["example"][order].astype(np.int64)
    if np.any(example[1:] == example[:-1]):
        raise ValueError(f"Split {name!r}: example id {example[1:][example[1:] == example[:-1]][0]} is repeated.")
    values = {key: arrays.get(key, np.full(shape, np.nan))[order].astype(np.float32) for key in VALUES}
    counts = {key: arrays.get(key, np.zeros(shape, np.int32))[order].astype(np.int32) for key in COUNTS}
    if any(np.any(count < 0) for count in counts.values()):
        raise ValueError(f"Split {name!r}: a count is negative.")
    if np.any(counts["samples"] < np.maximum(counts["correct"] + counts["unparsed"], counts["decided_on_host"])):
        raise ValueError(f"Split {name!r}: an example has more verdicts (correct, unparsed; decided) than samples.")
    if np.any((counts["skipped"] > 0) & (counts["samples"] > 0)):
        raise ValueError(f"Split {name!r}: an example is both sampled and skipped.")
    rows, each = answers.shape
    offsets = np.arange(0, rows * each + 1, each, dtype=np.int32) if each else np.zeros(rows + 1, np.int32)
    columns = {
        "step": pa.array(np.full(rows, step, np.int32)),
        "epoch": pa.array(np.full(rows, epoch, np.float32)),
        "member": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [member]),
        "split": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name]),
        "example": pa.array(example),
        **{key: pa.array(value, mask=np.isnan(value)) for key, value in values.items()},
        **{key: pa.array(count) for key, count in counts.items()},
        "answers": pa.ListArray.from_arrays(offsets, answers[order].astype(np.uint32).ravel(), type=_HASHES),
    }
    return pa.table(columns, schema=_SCHEMA)


def sealed(tables: Sequence[pa.Table], measures: Mapping, about: Mapping) -> bytes:
    """The Parquet file of an evaluation: its splits, the measures of the whole run, and a checksum of all of it."""
    metadata = {_FORMAT: FORMAT, _MEASURES: json.dumps(measures).encode(), _ABOUT: json.dumps(about).encode()}
    table = pa.concat_tables(tables).unify_dictionaries().replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata | {_DIGEST: _digest(table)}), buffer, compression="zstd")
    return buffer.getvalue()


def measures(table: pa.Table) -> dict[str, dict[str, float]]:
    """What was measured of each member of the run, by name."""
    return json.loads(table.schema.metadata[_MEASURES])


def about(table: pa.Table) -> dict:
    """What the evaluation says of its run."""
    return json.loads(table.schema.metadata[_ABOUT])


def _opened(path: Path, read):
    try:
        with path.open("rb") as file:
            return read(pa.BufferReader(file.read()))  # pyarrow may abort at exit when given a Python file
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise Damaged(
            f"the evaluation {path} is cut short or damaged ({error})",
            "start its run again, which makes the evaluation again where it keeps the checkpoint of that step, and "
            "otherwise goes on without it, and says so",
        ) from error


def _read_whole(file) -> pa.Table:
    table = pq.read_table(file, use_threads=False)
    metadata = table.schema.metadata or {}
    if metadata.get(_FORMAT) == FORMAT and metadata[_DIGEST] != _digest(table):
        raise OSError("its values are not those that were written")
    return table


def _digest(table: pa.Table) -> bytes:
    """SHA-256 of the names and values of all columns, the measures and the metadata of the run.

    It does not depend on Parquet's encoding. Parquet's own checksums omit page headers and the measures.
    """
    digest = hashlib.sha256(table.schema.metadata[_MEASURES] + table.schema.metadata[_ABOUT])
    for name in table.column_names:
        column = table[name]
        if name in ("member", "split"):
            column = column.cast(pa.string()).combine_chunks().dictionary_encode()
            texts = dict(enumerate(map(json.dumps, column.dictionary.to_pylist())))
            values = ", ".join([texts[i] for i in column.indices.to_pylist()])
        elif name == "answers":
            lengths, flat = pc.list_value_length(column), pc.list_flatten(column)
            values = ", ".join(f'"{each.to_numpy().tobytes().hex()}"' for each in (lengths, flat))
        else:
            values = f'"{column.to_numpy().tobytes().hex()}"'
        # The JSON of [name, type, values], without a parser's look at every digit.
        digest.update(f'["{name}", "{table[name].type}", [{values}]]'.encode())
    return digest.hexdigest().encode()


def footer(path: Path) -> None:
    """Raises Damaged unless the file has a readable Parquet footer."""
    _opened(path, pq.read_metadata)


def read(path: Path, step: int) -> pa.Table:
    """The evaluation at `step`.

    Raises:
      UserError: the file has another version of the format.
      Damaged: it is unreadable, its checksum does not match, or it is of another step.
    """
    table = _opened(path, _read_whole)
    found = (table.schema.metadata or {}).get(_FORMAT)
    if found != FORMAT or not table.schema.equals(_SCHEMA):
        version = "no version" if found is None else f"version {found.decode(errors='replace')}"
        raise UserError(
            f"{path} has {version} of the trace format and columns {table.column_names}; this program reads version "
            f"{FORMAT.decode()}. Read it with the program that wrote it, or delete it and run again."
        )
    if table.num_rows == 0 or table["step"].unique().to_pylist() != [step]:
        raise Damaged(f"{path} does not hold the step that its name says", "give it its own name back, or delete it")
    return table


def by_split(table: pa.Table) -> dict[str, dict[str, np.ndarray]]:
    """The columns of each split of one evaluation."""
    columns = {key: table[key].to_numpy() for key in ("example", *VALUES, *COUNTS)}
    lengths = pc.list_value_length(table["answers"]).to_numpy()
    hashed_NR = np.zeros((len(lengths), lengths.max(initial=0)), np.uint32)
    hashed_NR[np.arange(hashed_NR.shape[1]) < lengths[:, None]] = pc.list_flatten(table["answers"]).to_numpy()
    columns["answers"] = hashed_NR
    encoded = table["split"].cast(pa.string()).combine_chunks().dictionary_encode()
    split_N = encoded.indices.to_numpy()
    names = encoded.dictionary.to_pylist()
    return {name: {key: values[split_N == i] for key, values in columns.items()} for i, name in enumerate(names)}
