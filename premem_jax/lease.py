"""Who works in a folder: one launch at a time."""

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

from premem_jax import atomic, processes, progress
from premem_jax.errors import UserError

BEAT_SECONDS = 15
DEAD_SECONDS = 60  # without a beat, after which the work of a launch on another host counts as ended


@contextlib.contextmanager
def lease(folder: Path, *, wait: bool = False):
    """Holds `folder/in_use.json` while it lasts; process 0 does, for all.

    The file says which process of which host works there; it is written once, so that a holder who stood still cannot
    write over the name of who took the folder meanwhile. That it lives it says every 15 seconds in
    `folder/in_use_beat.json`. A holder on this host is dead when its process is gone, one on another host when no beat
    of its has come for a minute. So nothing is needed of the file system but that a file is written whole.

    Args:
      wait: for the holder to finish; otherwise a holder that lives is an error.

    Raises:
      UserError: another launch works there.
    """
    path = folder / "in_use.json"
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started("self"),
        "token": secrets.token_hex(8),
    }
    processes.once(lambda: _take(path, mine, wait))
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


def _take(path: Path, mine: dict, wait: bool) -> None:
    said = False
    while (holder := _read(path)) and _lives(path, holder):
        if not wait:
            raise UserError(
                f"{path.parent} is in use by process {holder['pid']} on {holder['host']}; wait for its end, or use "
                "another --workdir"
            )
        if not said:
            progress.say(f"waiting for process {holder['pid']} on {holder['host']}, which works in {path.parent}")
            said = True
        time.sleep(1)
    _write(path, mine)
    time.sleep(0.2)  # of two that come at once, the later one has it
    if (_read(path) or mine)["token"] != mine["token"]:
        raise UserError(f"{path.parent} was taken by another launch at this moment; use another --workdir")


def _lives(path: Path, holder: dict) -> bool:
    if holder["host"] == socket.gethostname():
        return _started(holder["pid"]) == holder["started"]
    progress.say(f"{path.parent} was in use on {holder['host']}; looking whether it still is ({DEAD_SECONDS} s)")
    last = _read(_beats(path))
    end = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        beat = _read(_beats(path))
        if _read(path) != holder or (beat and beat != last and beat["token"] == holder["token"]):
            return True
    return False


def _keep(path: Path, mine: dict, over: threading.Event) -> None:
    """Beats until it is `over`; ends the process once somebody else has the folder, who then writes the run."""
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
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write(path: Path, said: dict) -> None:
    atomic.write_text(path, json.dumps(said) + "\n")


def _started(pid: int | str) -> str | None:
    """When a process of this host began, which with its number names it; None where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:  # no Linux: the number has to do
        os.kill(os.getpid() if pid == "self" else pid, 0)
        return "there"
    except OSError:
        return None
