"""Leases: one launch at a time works in a folder."""

import contextlib
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time

from etils.epath import Path

from premem_jax.errors import UserError
from premem_jax.running import atomic, processes, progress, workdir

BEAT_SECONDS = 15
DEAD_SECONDS = 60  # without a heartbeat, after which a launch on another host counts as dead


class InUse(UserError):
    """Another launch works in the folder."""


@contextlib.contextmanager
def opened(folder: Path, config: dict):
    """Holds the lease of a run's folder and claims it for `config`. Nothing in it is touched before the lease is held.

    Temporary files of killed launches are removed.

    Raises:
      InUse: another launch works there.
      UserError: as `workdir.claim`, or the processes disagree on the config or the code.
    """
    processes.agree({"config": workdir.settings(config), "code": workdir.code()})
    processes.once(lambda: workdir.check(folder, config))
    with lease(folder):
        processes.once(lambda: atomic.remove_leftovers(folder))
        workdir.claim(folder, config)
        yield


@contextlib.contextmanager
def lease(folder: Path, *, wait: bool = False):
    """Holds `folder/in_use.json` during the block; process 0 holds it for all processes.

    The file names the holder. It is written once, so a holder that was suspended cannot overwrite its successor. A
    heartbeat goes to `folder/in_use_beat.json` every 15 seconds. A local holder (same host, boot and process
    namespace) is dead when its process is; remote holders are dead after 60 s without a heartbeat. Only atomic file
    writes are required.

    Args:
      wait: wait for a live holder to finish; otherwise a live holder is an error.

    Raises:
      InUse: another launch works there.
    """
    path = folder / "in_use.json"
    mine = _here() | {"pid": os.getpid(), "started": _started("self"), "token": secrets.token_hex(8)}
    if refusal := processes.once(lambda: _take(path, mine, wait)):
        raise InUse(refusal)
    over = threading.Event()
    if processes.leads():
        keeper = threading.Thread(target=_keep, args=(path, mine, over), daemon=True)
        keeper.start()
    try:
        yield
    finally:
        over.set()
        if processes.leads():
            keeper.join()
            if (_read(path) or mine)["token"] == mine["token"]:
                for file in (path, _beats(path)):
                    file.unlink(missing_ok=True)


def _take(path: Path, mine: dict, wait: bool) -> str | None:
    """Takes the lease; returns the reason if it is held by another."""
    said = False
    while (holder := _read(path)) and _lives(path, holder):
        if not wait:
            return (
                f"{path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}; wait for its end, or "
                "use another --workdir"
            )
        if not said:
            progress.say(
                f"waiting for process {holder.get('pid')} on {holder.get('host')}, which works in {path.parent}"
            )
            said = True
        time.sleep(1)
    _write(path, mine)
    time.sleep(0.2)  # of two that come at once, the later one has it
    if (_read(path) or mine)["token"] != mine["token"]:
        return f"{path.parent} was taken by another launch at this moment; use another --workdir"
    return None


def _lives(path: Path, holder: dict) -> bool:
    if all(holder.get(key) == value for key, value in _here().items()):
        return _started(holder.get("pid")) == holder.get("started")
    progress.say(f"{path.parent} was in use on {holder['host']}; looking whether it still is ({DEAD_SECONDS} s)")
    last = _read(_beats(path))
    end = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        beat = _read(_beats(path))
        if _read(path) != holder or (beat and beat != last and beat["token"] == holder["token"]):
            return True
    return False


def _here() -> dict[str, str]:
    """Identifies this process namespace: containers may share a host's name, but not its process numbers."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    known = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):
        known |= {"boot": boot.read_text().strip(), "namespace": os.readlink(namespace)}
    return known


def _keep(path: Path, mine: dict, over: threading.Event) -> None:
    """Sends heartbeats until `over`; ends the process if another launch has taken the lease."""
    for beat in itertools.count(1):
        if over.wait(BEAT_SECONDS):
            return
        with contextlib.suppress(Exception):  # a folder that does not answer may answer again
            found = _read(path)
            if found and found["token"] != mine["token"]:
                print(
                    f"error: {path.parent} was taken over on {found['host']} while this process stood still",
                    file=sys.stderr,
                )
                sys.stderr.flush()
                os._exit(2)
            _write(_beats(path), {"token": mine["token"], "beat": beat})


def _beats(path: Path) -> Path:
    return path.with_name("in_use_beat.json")


def _read(path: Path) -> dict | None:
    """The content of the lease file; None if it is missing or not a lease."""
    try:
        said = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and "token" in said else None


def _write(path: Path, said: dict) -> None:
    atomic.write_text(path, json.dumps(said) + "\n")


def _started(pid: int | str) -> str | None:
    """Start time of a local process, which with its number identifies it; None if the process is gone."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if said[0] in "ZX" else said[19]  # Z: it has ended, and nobody has asked how
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:  # no Linux: the number has to do
        os.kill(os.getpid() if pid == "self" else pid, 0)
        return "there"
    except OSError:
        return None
