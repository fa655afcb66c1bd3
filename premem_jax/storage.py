"""Where files lie: on a disk or in a bucket of Google Cloud Storage, behind one kind of path.

A bucket has no folders, only objects whose names have slashes; an object is replaced as a whole, and nothing else is:
it cannot be appended to, and a folder cannot be renamed.
"""

import importlib.util
import logging
import os

import fsspec
from etils.epath import Path

from premem_jax.errors import UserError


def path(place: str | os.PathLike) -> Path:
    """The absolute path of a file or folder, which need not be there.

    Raises:
      UserError: a bucket that cannot be read or lacks the library that it takes, or another kind of store.
    """
    text = os.fspath(place)
    if "://" not in text:
        return Path(text).absolute()
    if not text.startswith("gs://"):
        raise UserError(f"{text}: files lie on a disk, or in a bucket, gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text}: buckets need gcsfs; pip install -e '.[gcs]'")
    fsspec.config.conf["gs"] = {"use_listings_cache": False}  # other processes, and Orbax, write there too
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it then raises
    found = Path(text)
    try:
        found.exists()
    except Exception as error:  # of several libraries
        mend = "check the name, `gcloud auth application-default login`, and the account's rights on the bucket"
        raise UserError(f"{text} cannot be read ({_brief(error)}); {mend}") from error
    return found


def in_bucket(place: str | os.PathLike) -> bool:
    """Whether a path is one of a bucket, without a look at it."""
    return os.fspath(place).startswith("gs://")


def files(folder: Path) -> list[Path]:
    """All files at any depth below `folder`, in the order of their names; none where there is no such folder."""
    system, root = _locate(folder)
    return sorted(folder / os.path.relpath(file, root) for file in system.find(root))


def write(path: Path, data: bytes) -> None:
    """Makes the object `path` in a bucket, or another in its place: readers find the old one or the new one.

    Raises:
      OSError: whatever went wrong.
    """
    system, name = _locate(path)
    try:
        system.pipe_file(name, data)
    except Exception as error:  # of several libraries
        raise OSError(_brief(error)) from error


def move(folder: Path, target: Path) -> None:
    """Gives a folder another name; in a bucket each of its objects, one after the other. `target` must not exist."""
    system, source = _locate(folder)
    system.makedirs(os.path.dirname(os.fspath(target)), exist_ok=True)
    system.mv(source, os.fspath(target), recursive=True)


def _locate(path: Path) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.url_to_fs(os.fspath(path))


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
