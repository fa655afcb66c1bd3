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
        nothing = lambda: {name: Collected(size) for name, size in examples.items()}
        found = nothing()
        # All go on from the file or none does; and none clears it before all have read it.
        self.of = found if processes.all_agree(self._read(found)) else nothing()

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

    def _read(self, found: dict[str, Collected]) -> bool:
        """Fills `found` from the file; whether that was possible."""
        if not self._path.exists():
            return False
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return self._fill(found, arrays)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s); the evaluation at step %d starts over", self._path, error, self._step)
            return False

    def _fill(self, found: dict[str, Collected], file) -> bool:
        if file["step"] != self._step:
            return False
        for name, mine in found.items():
            said, done = json.loads(str(file[f"{name}/said"])), file[f"{name}/done"]
            if len(done) != len(mine.done):
                raise ValueError(f"{len(done)} examples of {name}, not {len(mine.done)}")
            prefix = f"{name}/column/"
            mine.columns = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
            mine.done, mine.texts = done, said["texts"]
            mine.measures, mine.finished = said["measures"], said["finished"]
        return True
