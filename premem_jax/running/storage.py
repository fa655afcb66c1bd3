"""Storage on a disk or in a bucket of Google Cloud Storage, behind one kind of path.

A bucket has no folders, only objects with slashes in their names. An object can only be replaced as a whole: it cannot
be appended to, and a folder cannot be renamed.
"""

import importlib.util
import logging
import os
import sys
import threading

import fsspec
from etils.epath import Path

from premem_jax.errors import UserError


def path(place: str | os.PathLike) -> Path:
    """The absolute path of a file or folder, which need not exist.

    Raises:
      UserError: an unreadable bucket, a missing library for buckets, or another kind of store.
    """
    text = os.fspath(place)
    if "\0" in text or not text.isprintable():
        shown = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        raise UserError(f"the path {shown!r} is not plain text (UTF-8 without control characters); use another name")
    if "://" not in text:
        try:
            return Path(os.path.expanduser(text)).absolute()
        except OSError as error:
            raise UserError(f"{text}: {error.strerror or error}") from error
    if not text.startswith("gs://"):
        raise UserError(f"{text}: files lie on a disk, or in a bucket, gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text}: buckets need gcsfs; pip install -e '.[gcs]'")
    fsspec.config.conf["gs"] = {"use_listings_cache": False}  # other processes, and Orbax, write there too
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it then raises
    found = Path(text)
    notice = threading.Timer(2, lambda: print(f"waiting for an answer from {text} ...", file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        found.exists()
    except Exception as error:  # of several libraries
        fix = "check the name, `gcloud auth application-default login`, and the account's rights on the bucket"
        raise UserError(f"{text} cannot be read ({_brief(error)}); {fix}") from error
    finally:
        notice.cancel()
    return found


def in_bucket(place: str | os.PathLike) -> bool:
    """Whether a path names a bucket; the bucket is not accessed."""
    return os.fspath(place).startswith("gs://")


def files(folder: Path) -> list[Path]:
    """All files at any depth below `folder`, ordered by name; none if there is no such folder."""
    system, root = _locate(folder)
    return sorted(folder / os.path.relpath(file, root) for file in system.find(root))


def write(path: Path, data: bytes) -> None:
    """Writes the object `path` in a bucket, atomically: readers find the old one or the new one.

    Raises:
      OSError: any failure.
    """
    system, name = _locate(path)
    try:
        system.pipe_file(name, data)
    except Exception as error:  # of several libraries
        raise OSError(_brief(error)) from error


def move(folder: Path, target: Path) -> None:
    """Renames a folder; in a bucket, each of its objects in turn. `target` must not exist."""
    system, source = _locate(folder)
    system.makedirs(os.path.dirname(os.fspath(target)), exist_ok=True)
    system.mv(source, os.fspath(target), recursive=True)


def _locate(path: Path) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.url_to_fs(os.fspath(path))


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
