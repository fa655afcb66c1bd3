"""An interrupted evaluation: its partial results are in `unfinished.npz` until it is complete."""

import io
import json
import logging
import time
from collections.abc import Mapping

import numpy as np
from etils.epath import Path

from premem_jax.evaluators.base import Collected
from premem_jax.running import processes, sealed

log = logging.getLogger(__name__)

KEEP_SECONDS = 60  # of evaluation that a killed process may lose


class Unfinished:
    """Partial results of one step, by evaluator name; continues from the file if it has that step."""

    def __init__(self, path: Path, step: int, examples: Mapping[str, int]):
        self._path, self._step, self._kept = path, step, time.monotonic()
        nothing = lambda: {name: Collected(size) for name, size in examples.items()}
        found = nothing()
        # Either all processes continue from the file or none; and none clears it before all have read it.
        self.of = found if processes.all_agree(self._read(found)) else nothing()

    def keep(self, *, now: bool = False) -> None:
        """Writes the file, `now` or if the last write was a minute ago."""
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
        sealed.write(self._path, buffer.getvalue())
        self._kept = time.monotonic()

    def clear(self) -> None:
        """Removes the file, because the evaluation is written."""
        if processes.leads():
            self._path.unlink(missing_ok=True)

    def _read(self, found: dict[str, Collected]) -> bool:
        """Fills `found` from the file; returns whether that was possible."""
        then = f"the evaluation at step {self._step} starts over"
        whole = lambda: sealed.unless_damaged(sealed.read, self._path, self._path.parent, then) is not None
        if not processes.once(whole):
            return False
        try:
            with np.load(io.BytesIO(sealed.read(self._path)), allow_pickle=False) as arrays:
                return self._fill(found, arrays)
        except (sealed.Damaged, ValueError, KeyError, OSError) as error:  # of other evaluators, or not seen by all
            log.warning("%s cannot be used (%s); %s", self._path, error, then)
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
