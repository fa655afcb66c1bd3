"""Starts all processes of a run, and restarts all of them when one fails.

  python -m launch.supervise --processes=4 --watch=DIR/checkpoints -- \\
      python -m premem_jax.main --config=configs/quickstart.py --workdir=DIR

All processes of a round start and end together: as soon as one has failed, the others get SIGTERM, and SIGKILL after
the grace period. The exit statuses of the round decide what follows:

  0   by all     the end
  2   by any     the end: a mistake that a restart cannot fix
  75  by any     another round: it was preempted, and its state is saved
  anything else  another round, with growing delays, until --max_failures rounds in a row failed without progress

SIGTERM, SIGINT and SIGHUP are passed to all processes as SIGTERM, and no further round starts.

With several processes, each gets PREMEM_COORDINATOR (with a new port each round), PREMEM_PROCESSES and PREMEM_PROCESS,
and each line of its output is prefixed with its number. A single process keeps the environment, as on a worker of a TPU
pod.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import IO

from etils import epath

from launch import cli
from premem_jax.errors import UserError

LONGEST_WAIT = 300.0  # seconds
POLL = 0.05  # seconds


def main(argv: list[str]) -> int:
    parser = cli.parser(__doc__)
    cli.add_rest(parser, "the command of each process")
    parser.add_argument("--processes", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--grace", type=float, default=120, help="seconds from SIGTERM to SIGKILL (default: 120)")
    parser.add_argument("--max_failures", type=int, default=5, help="failed rounds in a row to give up at (default: 5)")
    parser.add_argument("--backoff", type=float, default=2, help="seconds before the second round, doubled each time")
    parser.add_argument("--watch", help="a folder, local or gs://; a round that leaves a new name there made progress")
    args = parser.parse_args(argv)
    if not args.rest:
        raise UserError("no command; write it behind --, such as -- python -m premem_jax.main --config=FILE")
    if args.processes < 1 or args.max_failures < 1:
        raise UserError("--processes and --max_failures are at least 1")
    return Supervisor(args.rest, args.processes, args.grace, args.max_failures, args.backoff, args.watch).run()


def wait_seconds(failures: int, first: float) -> float:
    """Delay before the next round, after this many failures in a row without progress."""
    return min(first * 2.0 ** min(max(failures - 1, 0), 30), LONGEST_WAIT)


def cause(statuses: Iterable[int]) -> int:
    """The status of a round: a mistake outweighs a fault, a fault a preemption, a preemption success."""
    return max(statuses, key=lambda status: {0: 0, cli.PREEMPTED: 1, cli.CANNOT_MEND: 3}.get(status, 2))


class Supervisor:
    """Rounds of one command; the arguments are those of the command line."""

    def __init__(
        self, command: list[str], processes: int, grace: float, max_failures: int, backoff: float, watch: str | None
    ):
        self.command, self.processes, self.grace = command, processes, grace
        self.max_failures, self.backoff, self.watch = max_failures, backoff, watch
        self.seen = set()  # names in the watched folder
        self.stopped = None  # the signal that asked for the end

    def run(self) -> int:
        """Runs rounds until none is needed; returns the status of the last one."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        rounds = failures = 0
        self._progress()
        while True:
            rounds += 1
            status = self._round()
            if self._progress():
                failures = 0
            elif status != cli.PREEMPTED:
                failures += 1
            ended = f"round {rounds} ended with {status}"
            if status == 0:
                return _say(f"finished: {ended}", status)
            if status == cli.CANNOT_MEND:
                return _say(f"gave up: {ended}, which a restart cannot fix", status)
            if self.stopped:
                return _say(f"stopped by {self.stopped.name}: {ended}", status)
            if failures == self.max_failures:
                return _say(f"gave up: {ended}, the failure number {failures} in a row without progress", status)
            seconds = wait_seconds(failures, self.backoff)
            _say(f"{ended}, {'preempted' if status == cli.PREEMPTED else 'failed'}; the next begins in {seconds:g} s")
            if not self._sleep(seconds):
                return _say(f"stopped by {self.stopped.name}: {ended}", status)

    def _stop(self, number: int, _frame) -> None:
        self.stopped = signal.Signals(number)

    def _sleep(self, seconds: float) -> bool:
        """Sleeps; returns whether no signal to stop came."""
        end = time.monotonic() + seconds
        while not self.stopped and time.monotonic() < end:
            time.sleep(POLL)
        return not self.stopped

    def _progress(self) -> bool:
        """Whether the watched folder has new names, without temporary ones."""
        folder = epath.Path(self.watch) if self.watch else None
        try:
            names = {path.name for path in folder.iterdir()} if folder and folder.exists() else set()
        except Exception as error:  # of the network, or of whatever reads gs://
            _say(f"--watch={self.watch} cannot be read: {error}")
            return False
        new = {name for name in names - self.seen if "tmp" not in name}
        self.seen |= names
        return bool(new)

    def _round(self) -> int:
        """Starts all processes, makes sure that all end, and returns the `cause`."""
        processes = []
        try:
            for environment in self._environments():
                processes.append(Process(self.command, environment))
            noticed = self._wait(processes)
        finally:
            for process in processes:
                process.signal(signal.SIGKILL)  # stragglers, and what ended ones left behind
            statuses = [process.reap() for process in processes]
        if self.stopped or cli.CANNOT_MEND in statuses:
            return cause(statuses)
        return cause(noticed)  # not what our own SIGTERM made of the others

    def _wait(self, processes: list["Process"]) -> list[int]:
        """Waits until all have ended or the grace period is over; returns the statuses before any was signalled."""
        noticed = deadline = None
        while any(process.status is None for process in processes):
            statuses = [process.status for process in processes if process.status is not None]
            if deadline is None and (self.stopped or any(statuses)):
                noticed, deadline = statuses, time.monotonic() + self.grace
                for process in processes:
                    process.signal(signal.SIGTERM)
            if deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(POLL)
        return [process.status for process in processes] if noticed is None else noticed

    def _environments(self) -> Iterator[dict[str, str]]:
        if self.processes == 1:
            yield {}
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        for number in range(self.processes):
            yield dict(PREMEM_COORDINATOR=coordinator, PREMEM_PROCESSES=str(self.processes), PREMEM_PROCESS=str(number))


class Process:
    """A process in its own process group, and threads that forward its output."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        number = environment.get("PREMEM_PROCESS")
        pipe = None if number is None else subprocess.PIPE
        try:
            self.popen = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"cannot start {command[0]}: {error.strerror}; the command stands behind --") from error
        streams = [] if number is None else [(self.popen.stdout, sys.stdout), (self.popen.stderr, sys.stderr)]
        self.readers = [
            threading.Thread(target=_pass_on, args=(source, target, f"[{number}] "), daemon=True)
            for source, target in streams
        ]
        for reader in self.readers:
            reader.start()

    @property
    def status(self) -> int | None:
        """Exit status, 128 + N if signal N ended it; None while it runs. Does not reap it, so its id stays valid."""
        ended = os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status

    def signal(self, number: int) -> None:
        """Sends a signal to its process group, children included."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter: macOS, of a group that has ended
            os.killpg(self.popen.pid, number)

    def reap(self) -> int:
        """Waits for its end and its last output; returns its exit status."""
        code = self.popen.wait()
        for reader in self.readers:
            reader.join(timeout=5)
        return code if code >= 0 else 128 - code


def _pass_on(source: IO[bytes], target: IO[str], prefix: str) -> None:
    with source:
        for line in source:
            target.buffer.write(prefix.encode() + line.rstrip(b"\n") + b"\n")
            target.buffer.flush()


def _say(text: str, status: int = 0) -> int:
    """Prints a message and returns `status`."""
    print(f"supervise: {text}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    cli.run(main)
