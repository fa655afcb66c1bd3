"""Fault campaign: each kind of fault at random moments of real runs, and the losses.

    python -m benchmarks.faults --rounds=20 [--kinds=worker,hang] [--seed=0] [--results=FILE.json]

A round starts the processes of `tests/configs/tiny.py` (or continues the previous round's run), does its damage at a
random moment, and waits for all processes to end. A finished run is compared with an undisturbed one. Prints for each
kind how the processes ended, how long that took, and the number of lost files. `full` and `failing` mount a small disk
and need root; `slow` needs strace. A round takes about half a minute.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import disks
from tests.pod import assert_close, pod, texts
from tests.processes import ENVIRONMENT, Run, command

LIMIT = 180  # seconds within which every process has ended, whatever happened to the others
JOIN_SECONDS = 40  # for which a process waits for others that were killed before they met
DISK_MB = 64


def run_in(workdir: Path, cache: Path) -> Run:
    """A run with unsharded weights: with CPU devices on two cores, gathering would take most of the time."""
    run = Run(workdir, cache)
    run.arguments += "--config.mesh.data=-1", "--config.mesh.fsdp=1"
    return run


class Campaign:
    """Rounds of one kind of fault in a separate folder. A kind defines `damage(processes)`, done at its moment."""

    processes, prefix = 2, ()

    def __init__(self, straight: Run, seconds: float, folder: Path, seed: int):
        self.straight, self.seconds, self.folder = straight, seconds, folder
        self.random = random.Random(f"{type(self).__name__} {seed}")
        self.rounds, self.runs = [], 0
        self.fresh()

    def fresh(self) -> None:
        self.runs += 1
        self.run = run_in(self.folder / f"run{self.runs}", self.straight.cache)

    def round(self) -> None:
        """Starts the processes once, and does the damage if they live long enough."""
        logs, begun = Path(tempfile.mkdtemp(dir=self.folder)), time.monotonic()
        moment = begun + self.random.uniform(0, 1.3 * self.seconds)
        before, hurt, whole = self.finished_files(), False, not self.run.workdir.exists()
        arguments = [*self.prefix, *command(self.run.arguments)]
        with pod(self.processes, arguments, logs) as processes:
            while any(process.poll() is None for process in processes):
                if not hurt and self.ready(moment):
                    before, hurt, since = self.finished_files(), True, time.monotonic()
                    self.damage(processes)
                    deadline = since + LIMIT
                if hurt and time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            hung = sum(process.poll() is None for process in processes)
            took = time.monotonic() - since if hurt else None
        statuses = [process.returncode for process in processes]
        said = texts(logs)
        self.repair(said)
        if hurt:
            after = self.finished_files()
            self.rounds.append(
                {
                    "statuses": statuses,
                    "seconds_to_end": took,
                    "hung": hung,
                    "lost": sorted(name for name in before if after.get(name) != before[name]),
                    "messages": [message for text in said for message in re.findall(r"^error: .*$", text, re.M)],
                    "tracebacks": sum("Traceback" in text for text in said),
                }
            )
        elif whole:
            self.seconds = time.monotonic() - begun  # less than was thought, where other work has ended
        if statuses == [0] * self.processes:
            assert_close(self.run, self.straight)
            self.fresh()

    def finished_files(self) -> dict[str, bytes]:
        kinds = ("trace/*.parquet", "samples/*.jsonl")
        return {path.name: path.read_bytes() for kind in kinds for path in self.run.workdir.glob(kind)}

    def ready(self, moment: float) -> bool:
        return time.monotonic() > moment

    def repair(self, said: list[str]) -> None:
        """Repairs what a person would have to repair before a restart."""


class Worker(Campaign):
    """SIGKILL to process 1."""

    def damage(self, processes):
        processes[1].kill()


class Leader(Campaign):
    """SIGKILL to process 0."""

    def damage(self, processes):
        processes[0].kill()


class All(Campaign):
    """SIGKILL to all."""

    def damage(self, processes):
        for process in processes:
            process.kill()


class Hang(Campaign):
    """SIGSTOP to process 1: a host that hangs. Somebody kills it once the others have ended."""

    def damage(self, processes):
        processes[1].send_signal(signal.SIGSTOP)
        end = time.monotonic() + LIMIT
        while processes[0].poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        processes[1].kill()


class Preempt(Campaign):
    """SIGTERM to one of them."""

    def damage(self, processes):
        self.random.choice(processes).send_signal(signal.SIGTERM)


class Save(All):
    """SIGKILL to all during a save: of the next checkpoint after a random moment."""

    def ready(self, moment):
        return super().ready(moment) and self.run.has("checkpoints/*tmp*")


class Twice(Campaign):
    """A second launch in the same folder, which is refused; the first continues."""

    processes = 1

    def ready(self, moment):
        return super().ready(moment) and self.run.has("in_use.json")

    def damage(self, processes):
        second = subprocess.run(command(self.run.arguments), capture_output=True, text=True, env=os.environ)
        if processes[0].poll() is None:  # otherwise there was nothing left to refuse for
            assert second.returncode == 2 and "is in use by process" in second.stderr, second.stderr


class Truncated(Campaign):
    """SIGKILL, and a file of the newest checkpoint is truncated."""

    processes = 1

    def ready(self, moment):
        return super().ready(moment) and bool(self.run.saved)

    def damage(self, processes):
        processes[0].kill()
        processes[0].wait()
        files = [
            path for path in (self.run.workdir / "checkpoints" / str(self.run.saved[-1])).rglob("*") if path.is_file()
        ]
        self.harm(self.random.choice(sorted(files)))

    def harm(self, path: Path) -> None:
        os.truncate(path, self.random.randrange(path.stat().st_size + 1))


class Flipped(Truncated):
    """SIGKILL, and a bit of the newest checkpoint changes."""

    def harm(self, path):
        if data := bytearray(path.read_bytes()):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            path.write_bytes(data)


class FlippedTrace(Flipped):
    """SIGKILL, and a bit of a finished evaluation changes; the next start names the file, and a person restores it."""

    def ready(self, moment):
        return Campaign.ready(self, moment) and self.run.has("trace/*.parquet")

    def damage(self, processes):
        processes[0].kill()
        processes[0].wait()
        self.file = self.random.choice(sorted(self.run.workdir.glob("trace/*.parquet")))
        self.good = self.file.read_bytes()
        self.harm(self.file)

    def repair(self, said):
        if hasattr(self, "file"):
            done = subprocess.run(command(self.run.arguments), capture_output=True, text=True)
            noticed = done.returncode == 2 and self.file.name in done.stderr
            self.unnoticed = getattr(self, "unnoticed", 0) + (not noticed)
            self.file.write_bytes(self.good)
            (self.run.workdir / "summary.json").unlink(missing_ok=True)
            del self.file


class Full(Campaign):
    """The disk fills up at a random moment; a person frees it."""

    processes = 1

    def fresh(self):
        super().fresh()
        self.disk = self.folder / f"disk{self.runs}"
        self.disk.mkdir()
        if why := disks.mount(self.disk, DISK_MB):
            raise SystemExit(f"cannot mount a small disk: {why}")
        self.run = run_in(self.disk / "run", self.straight.cache)

    def damage(self, processes):
        (self.disk / "ballast").write_bytes(bytes(shutil.disk_usage(self.disk).free - self.random.randrange(1_000_000)))

    def repair(self, said):
        (self.disk / "ballast").unlink(missing_ok=True)


class Failing(Full):
    """The disk turns read-only at a random moment; a person repairs it."""

    def damage(self, processes):
        disks.remount(self.disk, "ro")

    def repair(self, said):
        disks.remount(self.disk, "rw")


class Slow(Campaign):
    """Every flush to disk takes half a second longer. Nothing breaks; the run takes longer."""

    processes = 1
    prefix = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=500000")

    def damage(self, processes):
        pass


KINDS = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in (Worker, Leader, All, Hang, Preempt, Save, Twice, Truncated, Flipped, FlippedTrace, Full, Failing, Slow)
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    ENVIRONMENT["PREMEM_JOIN_SECONDS"] = str(JOIN_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    straight = run_in(folder / "straight", folder / "cache")
    straight.finish()
    seconds = {}
    for processes in (1, 2):
        for name in ("first", "second"):  # the first compiles
            run, start = run_in(folder / f"{name}{processes}", folder / "cache"), time.monotonic()
            with pod(processes, command(run.arguments), folder / f"log{processes}") as running:
                assert [process.wait() for process in running] == [0] * processes, texts(folder / f"log{processes}")
            seconds[processes] = time.monotonic() - start
    print("a run takes", seconds, file=sys.stderr, flush=True)
    found = {}
    for name in options.kinds.split(","):
        (folder / name).mkdir()
        campaign = KINDS[name](straight, seconds[KINDS[name].processes], folder / name, options.seed)
        try:
            while len(campaign.rounds) < options.rounds:
                campaign.round()
                print(name, len(campaign.rounds), campaign.rounds[-1:], file=sys.stderr, flush=True)
        finally:
            for disk in (folder / name).glob("disk*"):
                disks.unmount(disk)
        found[name] = summary(campaign)
        print(json.dumps({name: found[name]}), flush=True)
        if options.results:
            options.results.write_text(json.dumps(found, indent=2) + "\n")
    shutil.rmtree(folder)


def summary(campaign: Campaign) -> dict:
    rounds = campaign.rounds
    took = [round["seconds_to_end"] for round in rounds]
    return {
        "rounds": len(rounds),
        "finished_runs": campaign.runs - 1,
        "statuses": dict(collections.Counter(str(round["statuses"]) for round in rounds)),
        "seconds_to_end": {"median": round(statistics.median(took), 1), "longest": round(max(took), 1)},
        "hung": sum(r["hung"] for r in rounds),
        "files_lost": sum(len(r["lost"]) for r in rounds),
        "rounds_with_a_traceback": sum(r["tracebacks"] > 0 for r in rounds),
        "messages": dict(collections.Counter(m[:100] for r in rounds for m in r["messages"]).most_common(5)),
        **({"unnoticed": campaign.unnoticed} if hasattr(campaign, "unnoticed") else {}),
    }


if __name__ == "__main__":
    main()
