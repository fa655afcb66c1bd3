"""The processes of a run: joining, broadcasts from process 0, and stopping together.

Every process runs the same program and makes the same calls in the same order. Only process 0 writes files.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jax
from jax._src import distributed  # where the processes meet has no public name
from jax.experimental import multihost_utils

from premem_jax.errors import Stopped, UserError
from premem_jax.running import rendezvous

# Timeouts in seconds: heartbeat of another process, work of process 0 for all, end of the others.
HEARTBEAT_SECONDS, WORK_SECONDS, END_SECONDS = 30, 3600, 60


def start(mode: str, coordinator: str | None, count: int | None, index: int | None, join_seconds: int) -> None:
    """Joins the other processes. Must come before any other use of JAX.

    Args:
      mode: `off` for one process; `auto` joins if the environment describes several (Cloud TPU, GKE, SLURM, Open
        MPI); `on` requires several.
      coordinator, count, index: host:port of process 0, number of processes, index of this one; all or none.
      join_seconds: timeout for all processes to join.

    Raises:
      UserError: coordinator, count and index are not given together, `on` without a cluster, or missing processes.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together")
    if mode == "off" or (mode == "auto" and (count == 1 or (count is None and _alone()))):
        return
    if join_seconds < 1:
        raise UserError(f"--join_seconds={join_seconds} must be 1 or more")
    if count is not None and not 0 <= index < count:
        raise UserError(f"--process_id={index} must be from 0 to {count - 1}")
    if all(given):
        rendezvous.meet(coordinator, count, index, join_seconds)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except ValueError as error:  # nothing in the environment says where the others are
        if mode == "on" or all(given):
            raise UserError(f"the other processes cannot be joined: {error}; see --help on --coordinator") from error
    except RuntimeError as error:
        why = str(error).splitlines()[0][:200]
        raise UserError(
            f"the other processes did not come within {join_seconds} s ({why}); start all of them, raise "
            "--join_seconds, or run this one alone with --distributed=off"
        ) from error


def _alone() -> bool:
    """Whether the environment describes a cluster but this step has one process, as in a shell inside an allocation."""
    return os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("OMPI_COMM_WORLD_SIZE")) == "1" or (
        "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ
    )


def leads() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


# ---- Agreeing -------------------------------------------------------------------------------------------------------
# Broadcasts use JAX's coordination service, not device collectives, which time out during long work of one process.


def once(function: Callable):
    """Calls `function()` on process 0 only and broadcasts the result, a JSON value.

    Raises:
      UserError: in all processes, if process 0 raises it.
    """
    global _for_all
    if not _several():
        return function()
    value = None
    with leader_first():
        if leads():
            _for_all = True
            try:
                value = function()
            finally:
                _for_all = False
    return _exchange(value, of=[0])[0]


@contextlib.contextmanager
def leader_first():
    """Process 0 runs the block first; the others run it afterwards and find its files.

    Raises:
      UserError: in all processes, if process 0 raises it.
    """
    if not _several():
        yield
    elif leads():
        try:
            yield
        except UserError as error:
            _exchange(str(error), of=[0])
            raise
        _exchange(None, of=[0])
    else:
        if error := _exchange(None, of=[0])[0]:
            raise UserError(error)
        yield


def all_agree(yes: bool) -> bool:
    """Whether every process says yes."""
    return all(_exchange(yes)) if _several() else yes


def agree(facts: Mapping[str, str | Mapping[str, str]]) -> None:
    """Checks that all processes have the same text, such as a digest, or the same dictionary of texts.

    Raises:
      UserError: in all processes, naming what differs from process 0, and in which process.
    """
    if not _several():
        return
    flat = {}
    for name, value in facts.items():
        flat |= {f"{name}.{key}": x for key, x in value.items()} if isinstance(value, Mapping) else {name: value}
    first, *others = _exchange(flat)
    for index, theirs in enumerate(others, start=1):
        if differ := [key for key in sorted(first | theirs) if first.get(key) != theirs.get(key)]:
            shown = "; ".join(f"{key}: {first.get(key)} there, {theirs.get(key)} here" for key in differ[:5])
            raise UserError(
                f"process {index} does not do what process 0 does ({shown}); start all of them with the same command "
                "and the same code"
            )


_exchanges = 0
_for_all = False  # process 0 is in `once`, where the others cannot be asked


def _several() -> bool:
    return jax.process_count() > 1 and not _for_all


def _exchange(mine, of: Sequence[int] | None = None) -> list:
    """Gathers one JSON value from each process in `of` (default: all). All processes must call it equally often."""
    global _exchanges
    _exchanges += 1
    service, index = distributed.global_state.client, jax.process_index()
    of = range(jax.process_count()) if of is None else of
    if index in of:
        service.key_value_set(f"premem_jax/{_exchanges}/{index}", json.dumps(mine))
    key = f"premem_jax/{_exchanges}/"
    return [
        mine if other == index else json.loads(service.blocking_key_value_get(f"{key}{other}", WORK_SECONDS * 1000))
        for other in of
    ]


# ---- Stopping -------------------------------------------------------------------------------------------------------

_asked, _polls = False, 0


@contextlib.contextmanager
def stoppable(*, polls: bool = True):
    """During the block, SIGTERM and SIGINT (Ctrl-C) take effect at the next `poll`.

    A second SIGINT ends the process at once. Work that does not poll is interrupted at once: `Stopped` is raised. With
    several processes, JAX handles SIGTERM from `start` on and tells the others; a SIGINT is passed on as SIGTERM.
    """

    def ask(signum, frame):
        global _asked
        if not polls:
            raise Stopped
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("stopping at the next safe place; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            _asked = True

    signals = (signal.SIGINT,) if _joined() else (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, ask) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def poll() -> None:
    """Raises Stopped in all processes at the same call, once one was asked to stop. All must call it equally often."""
    global _polls
    _polls += 1
    if _asked or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(_polls)):
        raise Stopped


# ---- Ending ---------------------------------------------------------------------------------------------------------


def _joined() -> bool:
    """Whether there are other processes, without initializing devices."""
    return (distributed.global_state.num_processes or 1) > 1


def lost_another(error: Exception) -> bool:
    """Whether `error` is JAX's error for a dead or unresponsive process of the run."""
    if not _joined() or not isinstance(error, (RuntimeError, ValueError)):
        return False
    return "Gloo" in str(error) or str(error).startswith(("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"))


def leave(status: int) -> NoReturn:
    """Ends a failed process. With several processes it exits at once, because the others may never reach the barrier.

    They end when its heartbeat stops. If process 0 failed, it waits first, so that the others can report their errors.
    """
    if not _joined():
        sys.exit(status)
    if leads():
        time.sleep(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
