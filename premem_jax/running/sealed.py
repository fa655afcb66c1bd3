"""Files that a later launch reads back. Each carries its SHA-256, so that damage is detected.

- Bytes and JSON Lines (`write`, `read`) end in a line `{"sha256": ...}` of everything before it.
- A JSON document (`write_json`, `read_json`) has a field `sha256` of its other fields, so it stays plain JSON.
- Plain files for people have their checksum elsewhere: `samples/` in the trace file of their step. `metrics.jsonl` is
  written from a sealed copy beside it and read back only if that copy is damaged.

Content and checksum are one atomic write, so a kill never makes an intact file look damaged. A damaged file is moved to
`unreadable/` in the run's folder, named in a warning, and written again by its owner.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from etils.epath import Path

from premem_jax.errors import UserError
from premem_jax.running import atomic, storage

log = logging.getLogger(__name__)

T = TypeVar("T")


class Damaged(UserError):
    """A file is damaged. `what` names it; the message also says how to fix it."""

    def __init__(self, what: str, fix: str = ""):
        super().__init__(f"{what}; {fix}" if fix else what)
        self.what = what


def write(path: str | os.PathLike, body: bytes) -> None:
    """Writes `body` and its seal, whole or not at all. `body` should end a line."""
    atomic.write_bytes(path, body + _seal(body))


def read(path: str | os.PathLike) -> bytes:
    """The bytes given to `write`.

    Raises:
      FileNotFoundError: there is no such file.
      Damaged: the checksum does not match.
    """
    data = _bytes(path)
    body = data[: -len(_seal(b""))]
    if data != body + _seal(body):
        raise Damaged(f"{path} is damaged: its checksum does not match")
    return body


def write_json(path: str | os.PathLike, document: dict) -> None:
    """Writes a JSON document and its seal, whole or not at all. Raises ValueError for NaN and infinities."""
    seal = {"sha256": digest(_canonical(document))}
    atomic.write_text(path, json.dumps(document | seal, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """The document given to `write_json`, after a round trip through JSON.

    Raises:
      FileNotFoundError: there is no such file.
      Damaged: it is not JSON, or the checksum does not match.
    """
    try:
        document = json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error
    seal = document.pop("sha256", None) if isinstance(document, dict) else None
    if seal != digest(_canonical(document)):
        raise Damaged(f"{path} is damaged: its checksum does not match")
    return document


def unless_damaged(read: Callable[[Path], T], path: Path, workdir: Path, then: str) -> T | None:
    """The result of `read(path)`; None if the file is missing or damaged.

    A damaged file is set aside with a warning that ends in `then`, the next step. One process does this for all.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        log.warning("%s; moved to %s; %s", error.what, set_aside(path, workdir), then)
        return None


def set_aside(path: Path, workdir: Path, name: str = "") -> Path:
    """Moves a file or folder to `workdir/unreadable/NAME-n`, the first that is free, and returns that path."""
    name = name or path.name
    aside = next(there for n in count() if not (there := workdir / "unreadable" / f"{name}-{n}").exists())
    storage.move(path, aside)
    return aside


def digest(body: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def _bytes(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except IsADirectoryError as error:
        raise Damaged(f"{path} is a folder and should be a file") from error


def _seal(body: bytes) -> bytes:
    return json.dumps({"sha256": digest(body)}).encode() + b"\n"


def _canonical(document: dict) -> bytes:
    """Bytes of a document that do not change when it is written and read back."""
    return json.dumps(document, sort_keys=True).encode()
