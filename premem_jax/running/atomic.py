"""Atomic writes: a file is either the old one or the new one, on a disk and in a bucket."""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator

from etils.epath import Path

from premem_jax.running import storage

# Temporary names of `write_bytes` and `whole_folder`.
LEFTOVER = re.compile(r"\..+(\.[0-9a-f]{12})?\.tmp")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`: a temporary file in the same folder, flushed to disk, then renamed over `path`.

    In a bucket, every write is atomic already. Missing parent folders are created. The temporary name is
    `.{name}.{random}.tmp`: globs for the real files do not match it, and two hosts on a shared disk do not collide.
    """
    path = Path(path)
    if storage.in_bucket(path):
        storage.write(path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def remove_leftovers(folder: Path, *, seconds: float = 0) -> None:
    """Removes temporary files and folders of killed processes below `folder`, whose lease the caller must hold.

    Of a folder where others write, too, only those that are older than so many `seconds`.
    """
    if storage.in_bucket(folder):  # where nothing has another name before it is whole
        return
    latest = time.time() - seconds
    for path in sorted(pathlib.Path(folder).rglob(".*.tmp")):
        with contextlib.suppress(FileNotFoundError):  # in one that was removed before, or renamed by its writer
            if LEFTOVER.fullmatch(path.name) and path.stat().st_mtime <= latest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new temporary folder to fill: renamed to `path` when the block succeeds, removed when it fails.

    `path` must not exist. The temporary name is `.{name}.tmp`, so only one process at a time may write the folder;
    leftovers of a killed process are removed first.

    In a bucket, a folder cannot be renamed: files go to `path` directly, and the folder is whole once it has the file
    that the block writes last.
    """
    path = Path(path)
    unfinished = path if storage.in_bucket(path) else path.with_name(f".{path.name}.tmp")
    unfinished.rmtree(missing_ok=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if unfinished != path:
            for file in unfinished.iterdir():
                with open(file, "rb") as descriptor:
                    os.fsync(descriptor.fileno())
            _sync_folder(unfinished)
            os.rename(unfinished, path)
            _sync_folder(path.parent)
    except BaseException:
        unfinished.rmtree(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Flushes a folder, so that a rename in it survives a power cut (POSIX: the folder holds the name)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
