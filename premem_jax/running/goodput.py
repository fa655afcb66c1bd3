"""Goodput: seconds of each phase of a run, over all its launches."""

import time

from etils.epath import Path

from premem_jax.running import processes, sealed
from premem_jax.running.programs import Clock


class Goodput:
    """Seconds by phase, kept in `seconds.json` over all launches of a run.

    Time outside all phases is `restart`: the time between launches, and of work that a killed launch lost. As a
    context manager, it writes the file if the block fails.
    """

    def __init__(self, folder: Path, clock: Clock):
        self._path, self._clock = folder / "seconds.json", clock
        self._began, self._before, self._launches = time.time() - sum(clock.read().values()), {}, 1
        then = "time is counted from this launch on"
        kept = processes.once(lambda: sealed.unless_damaged(sealed.read_json, self._path, folder, then))
        if kept:
            launched = self._began
            self._began, self._before, self._launches = kept["began"], kept["seconds"], kept["launches"] + 1
            if kept["finished"]:  # the time since then is nobody's
                self._began += launched - kept["finished"]

    def __enter__(self) -> "Goodput":
        return self

    def __exit__(self, kind, error, where) -> None:
        if kind is not None:
            self.keep()

    def seconds(self) -> dict[str, float]:
        """By phase, without `restart`."""
        now = self._clock.read()
        return {phase: self._before.get(phase, 0.0) + now.get(phase, 0.0) for phase in self._before | now}

    def keep(self, *, finished: bool = False) -> None:
        """Writes the file."""
        if processes.leads():
            kept = {"began": self._began, "launches": self._launches, "seconds": self.seconds()}
            kept["finished"] = time.time() if finished else None
            sealed.write_json(self._path, kept)

    def summary(self) -> dict[str, float | int | str]:
        """Rows of a summary: seconds by phase, their total, and each phase's share of the time since the run began."""
        seconds = self.seconds()
        seconds["restart"] = max(0.0, time.time() - self._began - sum(seconds.values())) if self._launches > 1 else 0.0
        total = sum(seconds.values())
        ordered = sorted(seconds.items(), key=lambda item: -item[1])
        return {
            **{f"seconds_{phase}": round(value, 3) for phase, value in seconds.items()},
            "seconds_total": round(total, 3),
            "goodput": ", ".join(f"{phase} {value / total:.1%}" for phase, value in ordered),
            "launches": self._launches,
        }
