"""Where the time of a run went, over launches that ended well or badly."""

import json
import subprocess
import sys
import time

import pytest

from premem_jax.running.goodput import Goodput
from premem_jax.running.programs import Clock


def worked(phases) -> Clock:
    """A clock that has stood `seconds` in each phase."""
    clock = Clock()
    for phase, seconds in phases.items():
        with clock(phase):
            time.sleep(seconds)
    return clock


def test_seconds_add_up_over_launches_and_the_rest_is_restart(tmp_path):
    first = Goodput(tmp_path, worked({"train": 0.1, "sample": 0.05}))
    first.keep()
    time.sleep(0.2)  # killed: what it did since, and the way to the next launch
    second = Goodput(tmp_path, worked({"train": 0.1}))
    summary = second.summary()
    assert summary["launches"] == 2
    assert 0.2 <= summary["seconds_train"] < 0.3 and 0.05 <= summary["seconds_sample"] < 0.15
    assert 0.2 <= summary["seconds_restart"] < 0.3
    parts = [value for name, value in summary.items() if name.startswith("seconds_") and name != "seconds_total"]
    assert summary["seconds_total"] == pytest.approx(sum(parts), abs=0.01)
    shares = dict(part.rsplit(" ", 1) for part in summary["goodput"].split(", "))
    assert shares.keys() == {"train", "sample", "restart", "other"}
    assert sum(float(share.rstrip("%")) for share in shares.values()) == pytest.approx(100, abs=0.3)


def test_what_lies_behind_a_finished_run_is_nobodys_time(tmp_path):
    Goodput(tmp_path, worked({"train": 0.05})).keep(finished=True)
    time.sleep(0.3)
    assert Goodput(tmp_path, worked({"other": 0.01})).summary()["seconds_restart"] < 0.1


@pytest.mark.parametrize("text", ["", "{", json.dumps({"began": 0})])
def test_a_damaged_file_is_begun_anew(tmp_path, text):
    (tmp_path / "seconds.json").write_text(text)
    assert Goodput(tmp_path, worked({"train": 0.01})).summary()["launches"] == 1


def test_the_memory_of_a_parent_is_not_counted():
    ballast = b"x" * 600_000_000
    code = "from premem_jax.running.workdir import host_memory_peak; print(host_memory_peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(done.stdout) < len(ballast)
