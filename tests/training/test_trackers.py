"""The same scalars in every tracker, without a network, in a run that is continued."""

import logging
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from premem_jax.errors import UserError
from premem_jax.training import trackers
from premem_jax.training.metrics import Metrics

STEPS = {1: {"loss": 2.5, "grad_norm": 0.25}, 2: {"loss": 1.5}, 3: {"loss": 1.25}, 4: {"loss": 0.75, "rate": 1e-3}}
RUNS = ((0, (1, 2)), (2, (3, 4)))  # two launches: where each begins, and the steps it writes
WANTED = {(name, step): np.float32(value) for step, values in STEPS.items() for name, value in values.items()}


def write(folder, names=()):
    for begin, steps in RUNS:
        metrics = Metrics(folder, begin, names)
        for step in steps:
            metrics.write(step, STEPS[step])
        metrics.close()


def records(data: bytes):
    """The records of a TFRecord file: length, its checksum, the bytes, their checksum."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def in_tensorboard(folder):
    from tensorboardX.proto.event_pb2 import Event

    files = sorted(folder.glob("tensorboard/events*"), key=os.path.getmtime)
    events = [Event.FromString(record) for file in files for record in records(file.read_bytes())]
    return {(v.tag, e.step): np.float32(v.simple_value) for e in events for v in e.summary.value}


def test_tensorboard_has_every_scalar_and_needs_no_torch(tmp_path):
    code = f"""import sys
from pathlib import Path
from tests.training.test_trackers import write
write(Path({str(tmp_path)!r}))
print([name in sys.modules for name in ("torch", "tensorboardX")])
import torch; torch.zeros(1)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[False, True]"
    assert in_tensorboard(tmp_path) == WANTED


def in_wandb(folder):
    """By the layout of its files: a head of 7 bytes, then blocks of 32 KiB of records, as in LevelDB's log."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # the process that writes ends, and with it what it writes after `finish`
    found = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        data, at, begun = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:  # a block ends
                at += left
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            begun += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind not in (1, 4):  # neither whole nor the last part
                continue
            record, begun = Record.FromString(begun), b""
            row = {item.key or item.nested_key[0]: float(item.value_json) for item in record.history.item}
            step = int(row.pop("_step", -1))
            found |= {(name, step): np.float32(value) for name, value in row.items() if not name.startswith("_")}
    return found


def in_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == folder.name
    rows = [metric for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)]
    return {(metric.key, metric.step): np.float32(metric.value) for metric in rows}


def in_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    [name] = SQLiteStorage.get_runs(trackers.PROJECT)
    logs = SQLiteStorage.get_logs(trackers.PROJECT, name)
    names = {"loss", "grad_norm", "rate"}
    return {(key, row["step"]): np.float32(value) for row in logs for key, value in row.items() if key in names}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("wandb", in_wandb), ("mlflow", in_mlflow), ("trackio", in_trackio)])
def test_a_tracker_without_a_network_has_the_scalars_of_tensorboard(tmp_path, monkeypatch, name, read):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name, reason=f"pip install -e '.[{name}]' brings {name}")
    write(tmp_path / "run", (name,))
    assert read(tmp_path / "run") == in_tensorboard(tmp_path / "run") == WANTED


class Broken:
    def __init__(self, workdir):
        self.calls = 0

    def write(self, step, values):
        self.calls += 1
        raise ConnectionError("no network")


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "Wandb", Broken)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, ("wandb",))
    assert caplog.text.count("Broken gets no more metrics (ConnectionError: no network)") == len(RUNS)
    assert in_tensorboard(tmp_path) == WANTED


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check(())
    with pytest.raises(UserError, match=r"trackers='mlflow': it is not installed; pip install 'premem_jax\[mlflow\]'"):
        trackers.check(("mlflow",))
