"""Sweeps: the runs are those that would have been made alone, finished ones stay, and what failed is named."""

import json

import numpy as np
import pytest

from premem_jax.analysis.trace import read_trace
from tests.configs import tiny_sweep
from tests.processes import Run, finish

CONFIG = tiny_sweep.__file__


@pytest.fixture(scope="module")
def done(straight, tmp_path_factory):
    """With the base model and the compiled programs of a run that was made alone."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = f"--config.cache={straight.cache}", f"--workdir={folder / 'run'}"
    return folder, arguments, finish(*arguments, config=CONFIG)


def test_runs_are_made_studied_and_named(done):
    folder, _, process = done
    assert process.returncode == 0, process.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert list(summary["runs"]) == ["slow", "fast"] and list(summary["failed"]) == ["wild"]
    assert "Lower the learning rate" in summary["failed"]["wild"] and "run wild is left out" in process.stderr
    [task] = summary["tasks"].values()
    assert task["threshold_name"] == "heldout_quantile"
    assert {run["run"] for run in task["run_table"]} >= {"slow", "fast"}
    for run in task["run_table"]:  # each has the threshold and the value that it found alone
        if run["run"] in summary["runs"]:
            alone = json.loads((folder / "run" / "runs" / run["run"] / "summary.json").read_text())
            assert run["threshold"] == alone["threshold"] == summary["runs"][run["run"]]["threshold"]
            assert run["pre_memorization_accuracy"][-1] == alone["pre_memorization_accuracy"]
    assert len({run["threshold"] for run in summary["runs"].values()}) == 2
    assert (folder / "run" / "study" / "report.html").exists()
    for name, (off, *_) in summary["coverage"]["differences"].items():
        assert off == summary["runs"][name]["estimate"] - summary["runs"][name]["test_accuracy"]
    assert summary["coverage"]["of"] == 2 and "Of 2 runs, the 95 % intervals" in process.stdout
    lines = [line.split() for line in process.stdout.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("slow", "fast", "wild")] == ["slow", "fast"]


def test_a_run_of_a_sweep_is_the_run_alone(straight, done):
    """The second one, which found its programs compiled."""
    folder, _, _ = done
    alone = Run(folder / "alone", straight.cache)
    alone.finish("--config.train.learning_rate=4e-3")
    mine, theirs = (read_trace(path / "trace") for path in (folder / "run" / "runs" / "fast", folder / "alone"))
    np.testing.assert_array_equal(mine.steps, theirs.steps)
    for name in ("train", "heldout", "test"):
        np.testing.assert_array_equal(mine.split(name).nll, theirs.split(name).nll)
        np.testing.assert_array_equal(mine.split(name).correct, theirs.split(name).correct)
    compiled = lambda path: json.loads((path / "summary.json").read_text())["seconds_compile"]
    assert compiled(folder / "run" / "runs" / "fast") < 0.5 * compiled(straight.workdir)


def test_finished_runs_are_not_made_again(done):
    folder, arguments, _ = done
    kept = {path: path.stat().st_mtime_ns for path in (folder / "run" / "runs").glob("*/trace/*")}
    again = finish(*arguments, config=CONFIG)
    assert again.returncode == 0, again.stderr
    assert kept == {path: path.stat().st_mtime_ns for path in (folder / "run" / "runs").glob("*/trace/*")}
