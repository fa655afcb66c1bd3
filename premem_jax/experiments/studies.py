"""Studies: many runs under one folder, made one by one or by parallel launches, and the conclusion from them.

The folder of a study holds

  runs/NAME/        the run of each member, as if started alone; `failed.json` if its loss was not finite
  members/NAME/     the lease of the member, and its inputs from earlier members: `given.json` and the files that it
                    names with their checksums
  overview.json     the progress of each member, rewritten with every change
  summary.json      the conclusion, once all members are done
"""

import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils.epath import Path

from premem_jax.analysis.coverage import half_interval
from premem_jax.errors import NonFinite
from premem_jax.members import Member, chosen, config_of, members_of
from premem_jax.running import atomic, processes, progress, sealed, workdir
from premem_jax.running.atomic import write_text
from premem_jax.running.lease import InUse, lease
from premem_jax.running.workdir import HOLDING

log = logging.getLogger(__name__)

WAIT_SECONDS = 5  # between looks at members that other launches make

Give = Callable[[Member, Mapping[str, Path], Path], dict[str, Any]]
Conclude = Callable[[dict[str, dict], dict[str, str]], dict]


def nothing(member: Member, earlier: Mapping[str, Path], files: Path) -> dict[str, Any]:
    """Gives nothing: for members that need only their settings."""
    return {}


def run(config, folder: Path, *, columns: Mapping[str, str], conclude: Conclude, give: Give = nothing) -> dict | None:
    """Makes or continues the members of `config.study` that no other launch is making; concludes once all are done.

    A launch makes all members, or `config.study.member` and those that it needs. It waits for another launch's member
    only if its next member needs it. A member whose loss is not finite is left out and named, as are those that need
    it.

    Args:
      columns: keys of a member's summary to show in tables, and their formats.
      conclude: (summaries of the members, reasons of failures) → entries of the summary; writes its findings under
        `folder`. Called once, on process 0.
      give: (member that needs others, their folders, a folder for its own files) → settings for the member's config,
        such as data.path. Called once, on process 0; a resumed launch reads the result.

    Returns:
      The summary, or None if some members are not done yet.

    Raises:
      UserError: as the runs do; an invalid list of members.
    """
    study = Study(config, folder, columns, give)
    mine = chosen(study.members, config.study.member)
    settings = config.to_dict()
    processes.agree({"config": workdir.settings(settings), "code": workdir.code()})
    processes.once(lambda: workdir.check(folder, settings))
    with lease(folder, wait=True):  # for as long as it takes to write config.json; members have leases of their own
        workdir.claim(folder, settings)
        processes.once(lambda: atomic.remove_leftovers(folder, seconds=3600))
    study.make(mine)
    done, failed = processes.once(study.state)
    left = [name for name in study.members if name not in done and name not in failed]
    if left:
        progress.say(f"still to be made, here or by other launches: {', '.join(left)}; the last one concludes")
        return None
    with lease(folder, wait=True):
        return processes.once(lambda: study.conclude(conclude, done, failed))


class Study:
    """The members of a study and their folders."""

    def __init__(self, config, folder: Path, columns: Mapping[str, str], give: Give):
        self.members = members_of(config)
        self._config, self._folder, self._columns, self._give = config, folder, columns, give
        self._shown: set[str] = set()
        self._finished: dict[str, dict] = {}  # summaries that were read
        self._making: str | None = None
        self._told = False  # that it waits

    def make(self, mine: Sequence[Member]) -> None:
        """Makes each member of `mine` that is not done and not made by another launch."""
        with progress.bar(len(mine), self._config.experiment, "run") as bar:
            while True:
                waiting = [member for member in mine if not self._attempt(member)]
                bar.update(len(self._shown & {member.name for member in mine}) - bar.n)
                if not waiting:
                    return
                if not self._told:
                    progress.say(f"{waiting[0].name} waits for {', '.join(waiting[0].needs)}, made by another launch")
                    self._told = True
                processes.poll()
                time.sleep(WAIT_SECONDS)

    def state(self) -> tuple[dict[str, dict], dict[str, str]]:
        """Summaries of the finished members, and the errors of the failed ones."""
        done, failed = {}, {}
        for name, member in self.members.items():
            if lost := [need for need in member.needs if need in failed]:
                failed[name] = f"it needs {lost[0]}, which failed"
            elif found := _read(self._run(name) / "failed.json"):
                failed[name] = found["why"]
            elif found := self._finished.get(name) or _read(self._run(name) / "summary.json"):
                done[name] = self._finished[name] = found
        return done, failed

    def conclude(self, conclude: Conclude, done: dict[str, dict], failed: dict[str, str]) -> dict:
        """Writes `summary.json`, unless it already has exactly these members."""
        path = self._folder / "summary.json"
        runs = {name: {key: summary.get(key) for key in self._columns} for name, summary in done.items()}
        seconds = round(sum(summary.get("seconds_total", 0.0) for summary in done.values()), 3)
        there = _read(path)
        if there and (there["runs"], there["failed"], there["seconds_of_runs"]) == (runs, failed, seconds):
            progress.say(f"concluded already: {path}; remove it to conclude again")
            return there
        summary = {
            "experiment": self._config.experiment,
            **conclude(done, failed),
            "runs": runs,
            "failed": failed,
            "seconds_of_runs": seconds,
            "workdir": str(self._folder),
            **workdir.facts(),
        }
        sealed.write_json(path, summary)
        return summary

    def _attempt(self, member: Member) -> bool:
        """Makes the member if possible now; False if it must wait for a member of another launch."""
        done, failed = self._look()
        if member.name in done or member.name in failed:
            return True
        if not all(need in done for need in member.needs):
            return False
        try:
            with lease(self._folder / "members" / member.name):
                self._making = member.name
                done, failed = self._look()
                if member.name not in done and member.name not in failed:  # by another launch meanwhile
                    self._make(member)
        except InUse:
            return True  # whoever makes it will see that it is there
        finally:
            self._making = None
        done, failed = self._look()
        if member.name not in done and member.name not in failed:
            raise RuntimeError(f"{self._run(member.name)} was made, and left no summary.json that can be read")
        return True

    def _make(self, member: Member) -> None:
        settings = config_of(self._config, member, self._given(member) if member.needs else None)
        maker = importlib.import_module(f"premem_jax.experiments.{settings.experiment}")
        try:
            with progress.quiet():
                maker.run(settings, self._run(member.name))
        except NonFinite as error:
            why = {"why": str(error)}
            processes.once(lambda: sealed.write_json(self._run(member.name) / "failed.json", why))

    def _given(self, member: Member) -> dict[str, Any]:
        """The result of `give` for a member; called once, and again if one of the files that it made is damaged."""
        files = self._folder / "members" / member.name
        earlier = {need: self._run(need) for need in member.needs}

        def ask() -> dict[str, Any]:
            found = _read(files / "given.json")
            if found and all(_whole(files / name, digest) for name, digest in found["files"].items()):
                return found["settings"]
            settings = self._give(member, earlier, files)
            made = {name: sealed.digest((files / name).read_bytes()) for name in _names(files)}
            given = {"needs": list(member.needs), "settings": settings, "files": made}
            sealed.write_json(files / "given.json", given)
            return settings

        return processes.once(ask)

    def _look(self) -> tuple[dict[str, dict], dict[str, str]]:
        """The current state; prints what is new and writes `overview.json`."""
        done, failed = processes.once(self.state)
        new = [name for name in (*done, *failed) if name not in self._shown]
        width = max(map(len, self.members))
        for name in new:
            if name in failed:
                log.warning("run %s is left out: %s", name, failed[name])
                continue
            if not self._shown & done.keys():
                progress.say("  ".join([" " * width, *(f"{key.replace('_', ' ')[-18:]:>18}" for key in self._columns)]))
            cells = (_cell(done[name], key, form) for key, form in self._columns.items())
            progress.say("  ".join([f"{name:<{width}}", *(f"{cell:>18}" for cell in cells)]))
            self._shown.add(name)
        self._shown.update(new)
        processes.once(lambda: self._tell(done, failed))
        return done, failed

    def _tell(self, done: dict[str, dict], failed: dict[str, str]) -> None:
        def state(name: str) -> str:
            if name in done or name in failed:
                return "finished" if name in done else "failed"
            return "begun" if name == self._making or self._run(name).exists() else "not begun"

        overview = [
            {"name": name, "state": state(name), "needs": member.needs}
            | {key: done[name].get(key) for key in self._columns if name in done}
            | ({"why": failed[name]} if name in failed else {})
            for name, member in self.members.items()
        ]
        text = json.dumps({"written": time.strftime("%FT%TZ", time.gmtime()), "members": overview}, indent=2)
        write_text(self._folder / "overview.json", text + "\n")

    def _run(self, name: str) -> Path:
        return self._folder / "runs" / name


def _read(path: Path) -> dict | None:
    return sealed.unless_damaged(sealed.read_json, path, path.parent, "it is made again")


def _cell(summary: Mapping[str, Any], key: str, form: str) -> str:
    """A value of a summary, with half of its 95 % interval, if there is one, in points."""
    if (value := summary.get(key)) is None:
        return "–"
    half = half_interval(summary, key)
    return format(value, form) + ("" if half is None else f" ±{100 * half:.1f}")


def _names(files: Path) -> list[str]:
    """The files beside `given.json`, without those of the lease."""
    return [path.name for path in files.iterdir() if path.is_file() and not path.name.startswith((*HOLDING, "given."))]


def _whole(path: Path, digest: str) -> bool:
    """Whether a file that was given to a member is what it was; a damaged one is set aside."""

    def read(path: Path) -> bool:
        if sealed.digest(path.read_bytes()) != digest:
            raise sealed.Damaged(f"{path} is damaged: its checksum is another")
        return True

    return sealed.unless_damaged(read, path, path.parent, "it is made again") is not None
