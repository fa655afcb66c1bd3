"""Several processes of one run on this machine, each with a device, joined as the hosts of a pod are."""

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from premem_jax.analysis.trace import read_trace
from tests.processes import ENVIRONMENT, Run, command

SLOW = 240  # seconds after which a process that does not end fails the test


@contextlib.contextmanager
def pod(count: int, arguments: list[str], logs: Path) -> Iterator[list[subprocess.Popen]]:
    """The processes of `arguments`, started; what process i prints is in `logs/i.txt`. None outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    try:
        for index in range(count):
            place = dict(PREMEM_COORDINATOR=address, PREMEM_PROCESSES=str(count), PREMEM_PROCESS=str(index))
            with open(logs / f"{index}.txt", "w") as log:
                options = dict(env=ENVIRONMENT | place, stdout=log, stderr=log, start_new_session=True)
                processes.append(subprocess.Popen(arguments, **options))
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def run_pod(
    count: int, run: Run, *more, logs: Path, when: Callable[[], bool] | None = None, then: Callable | None = None
) -> tuple[list[int], list[str]]:
    """A pod of `run`; `then(processes)` is called as soon as `when()` holds. The statuses and what each printed."""
    with pod(count, command([*run.arguments, *more]), logs) as processes:
        while when and not when():
            assert any(process.poll() is None for process in processes), texts(logs)
            time.sleep(0.002)
        if then:
            then(processes)
        statuses = [process.wait(timeout=SLOW) for process in processes]
    return statuses, texts(logs)


def texts(logs: Path) -> list[str]:
    return [path.read_text() for path in sorted(logs.iterdir())]


def assert_close(run: Run, straight: Run) -> None:
    """`run` measured and learned what `straight` did, up to the order in which devices add."""
    mine, theirs = read_trace(run.workdir / "trace"), read_trace(straight.workdir / "trace")
    np.testing.assert_array_equal(mine.steps, theirs.steps)
    assert mine.splits.keys() == theirs.splits.keys()
    for name, split in theirs.splits.items():
        for counts in ("example", "samples", "correct", "unparsed"):
            np.testing.assert_array_equal(getattr(mine.splits[name], counts), getattr(split, counts))
        np.testing.assert_allclose(mine.splits[name].nll, split.nll, atol=1e-4)
    files = {name: data for name, data in straight.files().items() if name.startswith(("samples", "examples"))}
    assert {name: run.files()[name] for name in files} == files
    rows = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (straight.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    np.testing.assert_allclose([row["step"] for row in rows], [row["step"] for row in expected])
    losses = lambda rows: [row["loss"] for row in rows if "loss" in row]
    np.testing.assert_allclose(losses(rows), losses(expected), atol=1e-4)
    assert run.saved[-1] == straight.saved[-1] and len(run.saved) == len(straight.saved)  # a stop saves where it is
    mine, theirs = run.checkpoint(run.saved[-1]), straight.checkpoint(run.saved[-1])
    for name, array in theirs.items():
        np.testing.assert_allclose(mine[name], array, atol=2e-4, err_msg=name)
    left = [str(path) for path in run.workdir.rglob("*.tmp")] + [str(p) for p in run.workdir.glob("in_use*.json")]
    assert left == []
