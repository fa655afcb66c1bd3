"""The files of a dataset, from a folder or the network: their checksums and rows."""

import hashlib
import http.client
import io
import json
import tarfile
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from premem_jax import strict_json
from premem_jax.errors import UserError

SPLITS = ("train", "test")
TIMEOUT_SECONDS = 30


class Dataset(NamedTuple):
    """A dataset: the places of its files, the format of its rows, and its known defects."""

    name: str
    about: str
    url: str  # folder of the official files
    files: Mapping[str, str]  # their names and SHA-256
    rows: Mapping[str, str]  # `rows_checksum` of each split of them, for telling them in another layout
    get: str  # how people come by them
    fields: tuple[str, ...]  # of a JSON row, all strings
    parse: Callable[..., dict[str, str]]  # from these fields to a row; ValueError where it has no answer
    columns: tuple[str, ...]  # of a row
    defects: Mapping[str, Callable[[dict[str, str]], bool]]  # what may be odd, and whether a row is


class Documents(NamedTuple):
    """A split as read: one checksum over its files, and (place, JSON text) of each row in order."""

    checksum: str
    items: list[tuple[str, bytes]]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rows_checksum(rows: Iterable[Mapping[str, str]]) -> str:
    """SHA-256 of rows in order: equal for two layouts of the same data."""
    return sha256("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def parse_rows(documents: Documents, dataset: Dataset) -> list[dict[str, str]]:
    """Parses every document as a row of `dataset`.

    Raises:
      UserError: names file and line of the first malformed document.
    """
    rows = []
    for where, text in documents.items:
        try:
            rows.append(dataset.parse(**parse_fields(where, text, dataset.fields)))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    return rows


def fields(where: str, text: bytes, names: Sequence[str]) -> dict:
    """Parses a JSON object with the named fields. Raises UserError for other text or missing fields."""
    row = f"{where}: not a row {{{', '.join(names)}}}"
    try:
        item = strict_json.loads(text, where)
    except UserError as error:
        raise UserError(f"{row}: {str(error).removeprefix(f'{where}: ')}") from error
    if missing := [repr(name) for name in names if not isinstance(item, dict) or name not in item]:
        raise UserError(f"{row}: {', '.join(missing)} missing")
    if not isinstance(item, dict):
        raise UserError(f"{row}: no JSON object")
    return item


def parse_fields(where: str, text: bytes, names: Sequence[str]) -> dict[str, str]:
    """The named fields of a JSON object. Raises UserError if one is missing or not a string."""
    item = fields(where, text, names)
    if other := [name for name in names if not isinstance(item[name], str)]:
        raise UserError(f"{where}: not a row {{{', '.join(names)}}}: {other[0]} must be a string")
    return {name: item[name] for name in names}


# ---- From a folder --------------------------------------------------------------------------------------------------


def read_folder(folder: Path, split: str, dataset: Dataset) -> Documents:
    """Reads `folder/{split}.jsonl`, or else the tree `folder/{split}/SUBJECT/FILE.json`, sorted by name.

    Raises:
      UserError: neither exists, or a file cannot be read.
    """
    path = folder / f"{split}.jsonl"
    try:
        if not path.exists() and (folder / split).is_dir():
            files = {path.parts[-3:]: path.read_bytes() for path in (folder / split).glob("*/*.json")}
            return tree(files, folder)
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}); {dataset.get}") from error
    return jsonl(data, path)


def jsonl(data: bytes, path: str | Path) -> Documents:
    """The lines of a file, ended by newlines only: JSON text may hold the other separators of `str.splitlines`."""
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return Documents(sha256(data), [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1)])


def tree(files: Mapping[tuple[str, ...], bytes], root: str | Path) -> Documents:
    """One document per file `(split, subject, name)`, subjects and names sorted as strings.

    The checksum is that of the output of `sha256sum` on all files. Hidden files (`._1.json`) are skipped.
    """
    files = {"/".join(parts): files[parts] for parts in sorted(files) if not parts[-1].startswith(".")}
    listing = "".join(f"{sha256(data)}  {name}\n" for name, data in files.items())
    return Documents(sha256(listing.encode()), [(f"{root}/{name}", data) for name, data in files.items()])


# ---- From the network -----------------------------------------------------------------------------------------------


def download(dataset: Dataset, url: str | None = None) -> dict[str, Documents]:
    """Downloads each split of the official files, from their official URL or from a mirror at `url`.

    Raises:
      UserError: no network, or a file with another checksum than the official one.
    """
    base = (url or dataset.url).rstrip("/")
    files = {name: _fetch(f"{base}/{name}", checksum, dataset) for name, checksum in dataset.files.items()}
    if all(name.endswith(".jsonl") for name in files):
        return {split: jsonl(files[f"{split}.jsonl"], f"{base}/{split}.jsonl") for split in SPLITS}
    ((name, archive),) = files.items()
    return _unpack(archive, f"{base}/{name}")


def _fetch(url: str, checksum: str, dataset: Dataset) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            data = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise UserError(f"cannot download {url} ({error}); {dataset.get}") from error
    if sha256(data) != checksum:
        raise UserError(f"{url} has SHA-256 {sha256(data)}, the official file {checksum}; {dataset.get}")
    return data


def _unpack(archive: bytes, name: str) -> dict[str, Documents]:
    """The splits of an archive `TOP/{split}/SUBJECT/FILE.json`; nothing is written to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [m for m in tar if m.isfile() and m.name.endswith(".json")]
        files = {tuple(m.name.split("/")[-3:]): tar.extractfile(m).read() for m in members}
    return {split: tree({parts: files[parts] for parts in files if parts[0] == split}, name) for split in SPLITS}
