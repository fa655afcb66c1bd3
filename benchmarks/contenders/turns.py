"""Contenders: processes that wait for the name of a task, do it once, and report the time.

Imports only the standard library, because contenders may run in separate environments.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def serve(tasks: Mapping[str, Callable], versions: dict) -> None:
    """The contender's side: `tasks[name]()` makes a call that does the task once and returns a list of numbers."""
    replies, sys.stdout = sys.stdout, sys.stderr  # so that what libraries print is no reply
    print(json.dumps(versions), file=replies, flush=True)
    ready = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready = {name: tasks[name]()}  # one at a time, so that a task's memory is its own
        began, worked = time.perf_counter(), time.process_time()
        output = ready[name]()
        times = dict(seconds=time.perf_counter() - began, cpu=time.process_time() - worked)
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        print(json.dumps(times | dict(output=output, rss=rss)), file=replies, flush=True)


class Contender:
    """The other side: a contender's process, which ends with the `with` block."""

    def __init__(self, python: str, module: str, folder: Path):
        command = [python, "-m", f"benchmarks.contenders.{module}", str(folder)]
        root = Path(__file__).parents[2]
        self._log = open(folder / f"{module}.log", "w+")  # noqa: SIM115
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self._process = subprocess.Popen(command, cwd=root, text=True, **pipes)
        self.versions = self._reply()

    def turn(self, task: str) -> dict:
        """Does `task` once: `seconds`, `cpu` seconds of all threads, `output`, `rss`, the resident bytes."""
        self._process.stdin.write(task + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self._log.read()[-3000:]}\n{self._process.args[2]} ended")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._log.close()
