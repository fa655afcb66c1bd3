"""Runs from files: our own traces, the layout of the published runs, or a plain table."""

import os

from premem_jax.analysis.readers import release, table, workdirs
from premem_jax.analysis.runs import Run
from premem_jax.errors import UserError
from premem_jax.running import storage

LAYOUTS = (
    "run folders of this program (RUN/trace/step-*.parquet), the published layout (RUN/checkpoint-STEP/*.npy, or "
    "packed as RUN.npz), or tables (*.parquet or *.npz) with columns " + ", ".join(table.REQUIRED)
)


def read_runs(path: str | os.PathLike, **choices) -> list[Run]:
    """Reads every run under `path`, in the order of their names.

    Args:
      path: a file, or a folder that holds runs of one of the three layouts at any depth.
      choices: options for the published files, see `release.read`.

    Raises:
      UserError: nothing there, several layouts at once, or a file that cannot be used.
    """
    place = storage.path(path)
    if not place.exists():
        raise UserError(f"--config.traces={path}: there is no such file or folder.")
    readers = {
        "run folders": (workdirs.find(place), workdirs.read),
        "published runs": (release.find(place), lambda found: release.read(found, **choices)),
        "tables": (table.find(place), table.read),
    }
    found = {name: reader for name, reader in readers.items() if reader[0]}
    if not found:
        raise UserError(f"--config.traces={path}: no trace in it. It may hold {LAYOUTS}.")
    if len(found) > 1:
        some = "; ".join(f"{name} such as {places[0]}" for name, (places, _) in found.items())
        raise UserError(f"--config.traces={path}: several layouts at once ({some}). Name a folder that holds one.")
    [(places, read)] = found.values()
    return sorted(read(places), key=lambda run: run.name)
