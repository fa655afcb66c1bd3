"""The program as people run it: real processes with one device, which a test may kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

LAST = 12  # updates of tests/configs/tiny.py: checkpoints at 4, 8, 12; evaluations at 0, 4, 5, 10, 12
CONFIG = Path(__file__).parent / "configs" / "tiny.py"
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiles faster
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}


def command(arguments, config: str | Path = CONFIG) -> list[str]:
    return [sys.executable, "-m", "premem_jax.main", f"--config={config}", *map(str, arguments)]


def finish(*arguments, config: str | Path = CONFIG, seconds: float = 300) -> subprocess.CompletedProcess:
    """The program with these arguments after `--config`, run to its end, for which it has so many seconds."""
    return subprocess.run(command(arguments, config), env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)


ATTEMPTS = """
import json, os, sys, tempfile
from premem_jax import main
ended = []
for arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile() as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 2)
            sys.argv = ["main", *arguments]
            main.cli()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        ended.append((status, said.read().decode()))
print(json.dumps(ended))
"""


def attempts(commands: Iterable[Iterable[str]]) -> list[subprocess.CompletedProcess]:
    """Every command of the program, given by its arguments, in one launch that imports it once and forks for each."""
    commands = [list(map(str, arguments)) for arguments in commands]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS], env=ENVIRONMENT, input=json.dumps(commands), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [
        subprocess.CompletedProcess(command, status, stderr=said)
        for command, (status, said) in zip(commands, json.loads(done.stdout), strict=True)
    ]


def interrupt(
    *arguments, when: Callable[[], bool], then: Callable[[subprocess.Popen], None], config: str | Path = CONFIG
) -> tuple[int, str]:
    """Starts the program, calls `then(process)` as soon as `when()` holds, if ever, and waits for its end.

    Returns:
      The exit status and what it wrote to stderr.
    """
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command(arguments, config), env=ENVIRONMENT, start_new_session=True, **pipes) as process:
        try:
            while process.poll() is None and not when():
                time.sleep(0.0005)
            if process.poll() is None:
                then(process)
            stderr = process.communicate(timeout=300)[1]
            return process.returncode, stderr
        finally:
            if process.poll() is None:
                kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and its children: nothing of it runs on."""
    os.killpg(process.pid, signal.SIGKILL)


def mistake(done: subprocess.CompletedProcess) -> str:
    """The message of a process that ended with a mistake: exit status 2 and one line, without a traceback."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    return lines[-1].removeprefix("error: ")


class Run:
    """A workdir and a cache, and the command that works there."""

    def __init__(self, workdir: Path, cache: Path):
        self.workdir, self.cache = workdir, cache
        self.arguments = f"--config.cache={cache}", f"--workdir={workdir}"

    def finish(self, *more):
        done = finish(*self.arguments, *more)
        assert done.returncode == 0, done.stderr
        return done

    def kill_when(self, moment: Callable[["Run"], bool], made: Iterable[str] = ("run",)) -> None:
        """Kills the run where `moment(self)` holds; if it missed that, removes the folders `made` and tries again."""
        for _ in range(6):
            _, stderr = interrupt(*self.arguments, when=lambda: moment(self), then=kill)
            if moment(self):
                return
            for folder in made:
                shutil.rmtree(self.workdir.parent / folder)
        pytest.fail(f"the moment was missed each time; the last run wrote {stderr}")

    def has(self, pattern: str) -> bool:
        return any(self.workdir.glob(pattern))

    @property
    def saved(self) -> list[int]:
        """Steps of the finished checkpoints."""
        return sorted(int(path.name) for path in self.workdir.glob("checkpoints/*") if path.name.isdigit())

    def files(self) -> dict[str, bytes]:
        """What must not depend on interruptions, by name: the trace, the metrics and the texts."""
        paths = [
            p for kind in ("trace/*", "metrics.jsonl", "samples/*", "examples.jsonl") for p in self.workdir.glob(kind)
        ]
        return {str(path.relative_to(self.workdir)): path.read_bytes() for path in paths}

    def summary(self) -> dict:
        """The summary without times and places."""
        summary = json.loads((self.workdir / "summary.json").read_text())
        skip = ("sha256", "seconds", "goodput", "launches", "host_memory", "workdir", "report", "git_commit")
        return {key: value for key, value in summary.items() if not key.startswith(skip)}

    def checkpoint(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint's state by name, read by Orbax without the package's code."""
        with ocp.PyTreeCheckpointer() as reader:
            path = (self.workdir / "checkpoints" / str(step) / "default").absolute()
            item = reader.metadata(path).item_metadata.tree
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            tree = reader.restore(path, restore_args=arguments)["state"]
        return {jax.tree_util.keystr(name): np.asarray(x) for name, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(run: Run, straight: Run) -> None:
    """`run` left what `straight` left: files, summary and checkpoints, bit for bit."""
    files = straight.files()
    assert len(files) == 12  # 5 evaluations, their samples, the metrics, the examples
    assert run.files() == files
    assert run.summary() == straight.summary()
    assert run.saved == straight.saved == [8, LAST]
    for step in straight.saved:
        mine, theirs = run.checkpoint(step), straight.checkpoint(step)
        assert mine.keys() == theirs.keys() and len(theirs) > 30
        assert [name for name in theirs if mine[name].tobytes() != theirs[name].tobytes()] == []
        assert mine["['step']"] == step
