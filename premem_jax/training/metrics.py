"""Metrics during a run: `metrics.jsonl` for programs, TensorBoard and other trackers for people."""

import json
import logging
import math
from collections.abc import Sequence

from etils.epath import Path

from premem_jax.running import processes, sealed
from premem_jax.running.atomic import write_bytes
from premem_jax.training.trackers import Trackers

log = logging.getLogger(__name__)


class Metrics:
    """Rows of `{"step": t, name: value, ...}`. Each flush rewrites the file, so a crash leaves only complete rows.

    Only process 0 writes; in the others, calls do nothing.

    Rows hold nothing that depends on the clock: a resumed run writes the same bytes as an uninterrupted one. They are
    written twice: first to `metrics.sealed`, which has a checksum, then to `metrics.jsonl`, which is for people. So the
    sealed copy is never the older one.
    """

    def __init__(self, workdir: Path, resume_step: int, trackers: Sequence[str] = ()):
        """Keeps the rows up to `resume_step`; later ones will be written again. `trackers` are names of `Trackers`."""
        self._path, self._sealed = workdir / "metrics.jsonl", workdir / "metrics.sealed"
        self._rows, self._trackers = [], None
        if processes.leads():
            rows = kept_rows(self._path, self._sealed, resume_step)
            self._rows = [r for r in rows if r["step"] < resume_step or (r["step"] == resume_step and "loss" in r)]
            self._trackers = Trackers(trackers, workdir, resume_step)

    def write(self, step: int, values: dict, member: str = "", **for_people: float) -> None:
        """Adds a row, in a stack that of one `member`. `for_people` (rates, seconds) goes to trackers only."""
        if self._trackers is None:
            return
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
        self._rows.append({"step": step} | ({"member": member} if member else {}) | values)
        shown = {f"{member}/{name}" if member else name: value for name, value in (values | for_people).items()}
        self._trackers.write(step, shown)

    def flush(self) -> None:
        if self._trackers is None:
            return
        lines = "".join(json.dumps(row) + "\n" for row in self._rows).encode()
        sealed.write(self._sealed, lines)
        write_bytes(self._path, lines)
        self._trackers.flush()

    def close(self) -> None:
        self.flush()
        if self._trackers is not None:
            self._trackers.close()


def kept_rows(plain: Path, copy: Path, resume_step: int) -> list[dict]:
    """Rows of earlier launches, from the sealed copy; from the plain file if that copy is damaged or missing.

    Finished updates are not repeated, so a warning says which rows are unchecked or lost.
    """
    workdir = plain.parent
    if (whole := sealed.unless_damaged(sealed.read, copy, workdir, f"its rows are looked for in {plain}")) is not None:
        return [json.loads(line) for line in whole.splitlines()]
    if not plain.exists():
        if resume_step:
            log.warning(
                "the metrics of the updates up to %d are lost: neither %s nor its copy is there", resume_step, plain
            )
        return []
    try:
        rows = [json.loads(line) for line in plain.read_bytes().splitlines()]
        rows = [row for row in rows if math.isfinite(row["step"] + 0)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        aside = sealed.set_aside(plain, workdir)
        log.warning(
            "%s is damaged, too; moved to %s; the metrics of the updates up to %d are lost", plain, aside, resume_step
        )
        return []
    log.warning("the %d rows of %s are taken as they are, since the checksum is gone with the copy", len(rows), plain)
    return rows
