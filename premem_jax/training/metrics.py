"""Numbers of a run as it goes: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
import math
import tempfile

import tensorboardX
from etils.epath import Path

from premem_jax import processes, storage
from premem_jax.atomic import write_bytes, write_text
from premem_jax.errors import UserError


class Metrics:
    """Rows of `{"step": t, name: value, ...}`, rewritten whole at each flush so that a crash leaves whole rows only.

    Process 0 alone has them; in the others nothing happens.

    Rows hold nothing that depends on the clock: a resumed run writes the same bytes as an uninterrupted one.
    """

    def __init__(self, workdir: Path, resume_step: int):
        """Keeps what was written of the updates up to `resume_step`; what came later is made again.

        Raises:
          UserError: the file there holds something other than such rows.
        """
        self._path = workdir / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []
            self._rows = [r for r in rows if r["step"] < resume_step or (r["step"] == resume_step and "loss" in r)]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._path} is damaged ({error}); delete it, or use another --workdir") from error
        self._board, self._events, self._disk = None, workdir / "tensorboard", None
        if processes.leads():
            if storage.in_bucket(workdir):  # where nothing is appended to
                self._disk = tempfile.TemporaryDirectory()
            folder = self._disk.name if self._disk else self._events
            self._board = tensorboardX.SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, step: int, values: dict, **for_people: float) -> None:
        """One row; `for_people` (rates, seconds) goes to TensorBoard only."""
        if self._board is None:
            return
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
        self._rows.append({"step": step} | values)
        for name, value in (values | for_people).items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        if self._board is None:
            return
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in self._rows))
        self._board.flush()
        if self._disk:
            for file in storage.files(Path(self._disk.name)):
                write_bytes(self._events / file.name, file.read_bytes())

    def close(self) -> None:
        self.flush()
        if self._board is not None:
            self._board.close()
            if self._disk:
                self._disk.cleanup()
