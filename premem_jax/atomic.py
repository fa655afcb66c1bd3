"""Files that are either the old one or the new one, never half of either, on a disk and in a bucket."""

import contextlib
import os
import secrets
from collections.abc import Iterator

from etils.epath import Path

from premem_jax import storage


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`: a temporary file in the same folder, flushed to disk, then renamed over `path`.

    In a bucket that is what writing is.

    Makes missing parent folders. The temporary name is `.{name}.{random}.tmp`, so a glob for the real files does not
    meet one that a killed process left behind, and two hosts on a shared disk do not meet either.
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


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder to fill, which takes the name `path` when the block ends well, and is gone when it does not.

    What a killed process left of the same folder is removed first; its name is `.{name}.tmp`, so only one process at a
    time may write it. `path` must not exist.

    A folder in a bucket cannot be renamed and is `path` from the first file on: it is whole once it has the file that
    the block writes last.
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
    """Makes the rename itself survive a power cut (POSIX: the folder holds the name)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
