"""The processes of a run: how they find each other, which of them writes, and when all of them stop.

Every process runs the same program and asks for the same things in the same order. Process 0 alone writes files.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
from jax._src import distributed  # where the processes meet has no public name
from jax.experimental import multihost_utils

from premem_jax.errors import Stopped, UserError

# How long a process waits for the others: to be given up as dead, to do something for all, and to end.
HEARTBEAT_SECONDS, WORK_SECONDS, END_SECONDS = 30, 3600, 60


def start(mode: str, coordinator: str | None, count: int | None, index: int | None, join_seconds: int) -> None:
    """Joins the other processes, before anything else is asked of JAX.

    Args:
      mode: `off` for one process; `auto` joins where the environment speaks of several (Cloud TPU, GKE, SLURM, Open
        MPI); `on` must.
      coordinator, count, index: host:port of process 0, the number of processes and which of them this one is; all or
        none.
      join_seconds: how long to wait for all of them to be there.

    Raises:
      UserError: some of them only, or `on` where the environment speaks of none.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together")
    if mode == "off" or (mode == "auto" and count == 1):
        return
    if count is not None and not 0 <= index < count:
        raise UserError(f"--process_id={index} is none of the processes 0 to {count - 1}")
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


def leads() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


# ---- Agreeing -------------------------------------------------------------------------------------------------------
# Through the service that JAX's processes meet at, not through the devices: these would not wait for long work of one.


def once(function: Callable):
    """What `function()` gives on process 0, where alone it is called: a JSON value, the same in all processes.

    Raises:
      UserError: in all processes, where it is raised in process 0.
    """
    if jax.process_count() == 1:
        return function()
    value = None
    with leader_first():
        if leads():
            value = function()
    return _exchange(value, of=[0])[0]


@contextlib.contextmanager
def leader_first():
    """Process 0 does the work of the block, and the others do it once its files are there.

    Raises:
      UserError: in all processes, where it is raised in process 0.
    """
    if jax.process_count() == 1:
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
    return yes if jax.process_count() == 1 else all(_exchange(yes))


_exchanges = 0


def _exchange(mine, of: Sequence[int] | None = None) -> list:
    """What the processes `of` (all) say here, JSON values, each process calling this as often as the others."""
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
def stoppable():
    """While it lasts, SIGTERM does not kill the process but is noticed at the next `poll`.

    With several processes this is so from `start` on: JAX listens, and tells the others.
    """

    def ask(signum, frame):
        global _asked
        _asked = True

    before = signal.signal(signal.SIGTERM, ask) if jax.process_count() == 1 else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def poll() -> None:
    """Raises Stopped once any process was sent SIGTERM, in all of them at the same call; all call it equally often."""
    global _polls
    _polls += 1
    if _asked or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(_polls)):
        raise Stopped


# ---- Ending ---------------------------------------------------------------------------------------------------------


def _joined() -> bool:
    """Whether there are others, without a look at the devices."""
    return (distributed.global_state.num_processes or 1) > 1


def lost_another(error: Exception) -> bool:
    """Whether `error` is what JAX raises where another process of the run has ended, or does not answer."""
    if not _joined() or not isinstance(error, (RuntimeError, ValueError)):
        return False
    return "Gloo" in str(error) or str(error).startswith(("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"))


def leave(status: int) -> NoReturn:
    """Ends a process that failed. One of several leaves at once: the others may never come to say goodbye.

    They end when its heartbeat stops, or when process 0 is gone, which lets them say first what is wrong with them.
    """
    if not _joined():
        sys.exit(status)
    if leads():
        time.sleep(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
