"""Where the time of a run went, over all its launches."""

import json
import time

from etils.epath import Path

from premem_jax import processes
from premem_jax.atomic import write_text
from premem_jax.programs import Clock


class Goodput:
    """Seconds by phase, kept in `seconds.json` so that a run that was interrupted knows of its earlier launches.

    What no phase has is `restart`: between launches, and work of a killed one that was not kept and is done again.
    As a context it writes the file where the block fails.
    """

    def __init__(self, folder: Path, clock: Clock):
        self._path, self._clock = folder / "seconds.json", clock
        try:
            kept = json.loads(self._path.read_text())
            self._began, self._before, self._launches = kept["began"], kept["seconds"], kept["launches"] + 1
            if kept["finished"]:  # the time since then is nobody's
                self._began += time.time() - sum(clock.read().values()) - kept["finished"]
        except (FileNotFoundError, ValueError, KeyError):
            self._began, self._before, self._launches = time.time() - sum(clock.read().values()), {}, 1

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
            write_text(self._path, json.dumps(kept, indent=2) + "\n")

    def summary(self) -> dict[str, float | int | str]:
        """Rows of a summary: seconds by phase, their total, and each phase's share of the time since the beginning."""
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
