"""One launch at a time in a folder: real processes that hold it, die, stand still, or come from elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from premem_jax.errors import UserError
from premem_jax.running import lease as module
from premem_jax.running.lease import lease

HOLD = """
import os, pathlib, signal, sys, time
from premem_jax.running import lease as module
module.BEAT_SECONDS = 0.2

def stand_still(*args, write=module.atomic.write_text):
    if module.threading.current_thread() is not module.threading.main_thread() and pathlib.Path(sys.argv[2]).exists():
        os.kill(os.getpid(), signal.SIGSTOP)
    write(*args)

module.atomic.write_text = stand_still
with module.lease(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path, tmp_path / "stand_still"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def said(folder, **changes):
    path = folder / "in_use.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stopped(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_the_second_launch_is_refused_and_changes_nothing(holder, tmp_path):
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on .*--workdir"), lease(tmp_path):
        pass
    assert json.loads((tmp_path / "in_use.json").read_text())["pid"] == holder.pid


def test_a_killed_holder_is_dead_at_once(holder, tmp_path):
    holder.kill()
    holder.wait()
    with lease(tmp_path):
        assert json.loads((tmp_path / "in_use.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "in_use.json").exists()


def test_a_number_that_another_process_has_now_is_no_holder(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)  # it renews nothing
    said(tmp_path, started="1")
    with lease(tmp_path):
        pass


def test_a_holder_elsewhere_lives_while_its_file_changes(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(UserError, match="in use"), lease(tmp_path):
        pass
    holder.send_signal(signal.SIGSTOP)
    while not stopped(holder):
        time.sleep(0.05)
    monkeypatch.setattr(module, "DEAD_SECONDS", 1)
    with lease(tmp_path):
        holder.send_signal(signal.SIGCONT)  # stood still, and finds its folder taken
        assert holder.wait(timeout=20) == 2
        assert "was taken over" in holder.stderr.read()


def test_a_holder_who_stands_still_before_a_beat_does_not_take_the_folder_back(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(module, "DEAD_SECONDS", 1)
    (tmp_path / "stand_still").touch()
    while not stopped(holder):
        time.sleep(0.05)
    with lease(tmp_path):
        (tmp_path / "stand_still").unlink()
        mine = (tmp_path / "in_use.json").read_text()
        holder.send_signal(signal.SIGCONT)
        assert holder.wait(timeout=20) == 2
        assert (tmp_path / "in_use.json").read_text() == mine
    assert not list(tmp_path.iterdir())


def test_who_waits_has_it_after_the_holder(holder, tmp_path):
    start = time.monotonic()
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {holder.pid}"]).wait()
    holder.wait()
    with lease(tmp_path, wait=True):
        assert time.monotonic() - start >= 1


def test_a_killed_holder_that_nobody_has_waited_for_is_dead(holder, tmp_path):
    holder.kill()
    while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with lease(tmp_path):
        pass
