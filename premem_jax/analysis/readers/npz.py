"""Strict reading of foreign npz and npy files: every byte is checked, and nothing is unpickled."""

import io
import zipfile

import numpy as np
from etils.epath import Path

from premem_jax.errors import UserError


def names(path: Path) -> list[str]:
    """The names of the arrays of an npz file.

    Raises:
      UserError: no such archive.
    """
    return [name.removesuffix(".npy") for name in _read(path, lambda packed: packed.namelist())]


def checked(path: Path) -> list[str]:
    """The same, after checking every entry; otherwise an entry with a damaged name would be missed.

    Raises:
      UserError: no such archive, or a damaged entry.
    """

    def look(packed: zipfile.ZipFile) -> None:
        if bad := packed.testzip():
            raise ValueError(f"{bad} is damaged")

    _read(path, look)
    return names(path)


def array(path: Path, name: str) -> np.ndarray:
    """One array of an npz file. The whole entry is read, so that the archive's checksum is verified.

    Raises:
      UserError: it cannot be read.
    """
    return _read(path, lambda packed: from_bytes(packed.read(f"{name}.npy")), f": {name}")


def npy(path: Path) -> np.ndarray:
    """The array of an npy file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return from_bytes(path.read_bytes())
    except Exception as error:  # of a parser that is fed bytes of others
        raise _damaged(path, error) from error


def from_bytes(data: bytes) -> np.ndarray:
    """The array in the bytes of an npy file. Raises ValueError, or another error of NumPy's parser, for other bytes."""
    stream = io.BytesIO(data)
    found = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):
        raise ValueError("there are bytes after the array")
    return found


def _read(path: Path, read, what: str = ""):
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as packed:
            return read(packed)
    except Exception as error:  # of a parser that is fed bytes of others
        raise _damaged(path, error, what) from error


def _damaged(path: Path, error: Exception, what: str = "") -> UserError:
    why = " ".join(str(error).split())[:250] or type(error).__name__
    return UserError(f"{path}{what} cannot be read ({why}); write or fetch it again.")
