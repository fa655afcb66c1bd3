"""An evaluation that was interrupted: what was found so far lies in `unfinished.npz` until the rest is found too."""

import io
import json
import logging
import time
import zipfile
from collections.abc import Mapping

import numpy as np
from etils.epath import Path

from premem_jax import atomic, processes
from premem_jax.evaluators.base import Collected

log = logging.getLogger(__name__)

KEEP_SECONDS = 60  # of evaluation that a killed process may lose


class Unfinished:
    """What each evaluator, by name, has found at one step; continues what the file has of that step."""

    def __init__(self, path: Path, step: int, examples: Mapping[str, int]):
        self._path, self._step, self._kept = path, step, time.monotonic()
        self.of = {name: Collected(size) for name, size in examples.items()}
        if path.exists():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    self._load(arrays)
            except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
                log.warning("%s cannot be read (%s); the evaluation at step %d starts over", path, error, step)

    def keep(self, *, now: bool = False) -> None:
        """Writes the file, `now` or where the last time is a minute ago."""
        if not processes.leads() or not (now or time.monotonic() - self._kept > KEEP_SECONDS):
            return
        arrays = {"step": np.int64(self._step)}
        for name, found in self.of.items():
            said = {"texts": found.texts, "measures": found.measures, "finished": found.finished}
            arrays[f"{name}/said"] = np.array(json.dumps(said))
            arrays[f"{name}/done"] = found.done
            arrays |= {f"{name}/column/{column}": values for column, values in found.columns.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        atomic.write_bytes(self._path, buffer.getvalue())
        self._kept = time.monotonic()

    def clear(self) -> None:
        """The evaluation is written; the file is of no use any more."""
        if processes.leads():
            self._path.unlink(missing_ok=True)

    def _load(self, file) -> None:
        if file["step"] != self._step:
            return
        for name, found in self.of.items():
            said, done = json.loads(str(file[f"{name}/said"])), file[f"{name}/done"]
            if len(done) != len(found.done):
                raise ValueError(f"{len(done)} examples of {name}, not {len(found.done)}")
            prefix = f"{name}/column/"
            found.columns = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
            found.done, found.texts = done, said["texts"]
            found.measures, found.finished = said["measures"], said["finished"]
