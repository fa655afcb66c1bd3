"""A run's folder: nothing in it is touched before it is held, and processes that disagree do not begin."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import premem_jax
from premem_jax import config as defaults
from premem_jax import keys
from premem_jax.analysis.readers import npz
from premem_jax.errors import Stopped, UserError
from premem_jax.experiments import grade
from premem_jax.running import atomic, lease, processes, rendezvous, storage, workdir
from tests.configs import tiny_checkpoint_rung
from tests.pod import pod, texts
from tests.processes import ENVIRONMENT, command

CONFIG = {"seed": 0, "train": {"learning_rate": 0.1}, "cache": "here"}


def contents(folder: Path) -> dict:
    """Every file with its bytes and the time of its last change, but for heartbeats."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and "beat" not in path.name]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_a_refused_launch_changes_nothing(tmp_path):
    """Neither in a folder that another launch holds, nor in one with another run, nor in one that is no run's."""
    folder = storage.path(tmp_path / "run")
    with lease.opened(folder, CONFIG):
        (folder / "tokenizer.model").write_bytes(b"mine")
        before = contents(folder)
        for config in (CONFIG, CONFIG | {"seed": 1}):
            with pytest.raises(lease.InUse, match="in use by process"), lease.opened(folder, config):
                pass
        assert contents(folder) == before
    with lease.opened(folder, CONFIG | {"cache": "elsewhere"}):
        assert json.loads((folder / "config.json").read_text())["cache"] == "elsewhere"
    (folder / "metrics.jsonl").write_text("")
    before = contents(folder)
    with pytest.raises(UserError, match=r"seed: 0 there, 1 here"), lease.opened(folder, CONFIG | {"seed": 1}):
        pass
    assert contents(folder) == before
    foreign = storage.path(tmp_path / "foreign")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no run's folder"), lease.opened(foreign, CONFIG):
        pass
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    absent = storage.path(tmp_path / "file")
    absent.write_text("")
    with pytest.raises(UserError, match="is a file"), lease.opened(absent, CONFIG):
        pass


TOGETHER = {"checkpoint_ladder", "curate", "dynamics", "ladder", "sweep"}  # in these, several launches work
ALONE = sorted({*keys.TABLES} - TOGETHER)


@pytest.mark.parametrize("experiment", ALONE)
def test_every_experiment_leaves_a_folder_in_other_hands_alone(experiment, tmp_path, monkeypatch):
    """It may read its inputs before, but neither writes nor works."""
    module = importlib.import_module(f"premem_jax.experiments.{experiment}")
    config = {name: made for name, made in configs(tmp_path)}[experiment]
    config.cache = str(tmp_path / "cache")
    folder = storage.path(tmp_path / "run")
    with lease.lease(folder):
        before = contents(folder)
        with pytest.raises(lease.InUse):
            module.run(config, folder)
        assert contents(folder) == before and not (tmp_path / "cache").exists()


def configs(folder: Path):
    """A config of each experiment that works alone, and the files that some read before anything else."""
    from configs import analyze, audit, dpo, emergence, evaluate, grade, plan, quickstart, squeezing_toy

    (folder / "table.csv").write_text("loss,amount,accuracy\n2,0,0.3\n")
    (folder / "rows.jsonl").write_text('{"output": "#### 3", "answer": "3"}\n')
    runs = dict(run=["a"] * 60, step=[1] * 60, example=range(60), n_samples=[1] * 60, n_correct=[1] * 60)
    pq.write_table(pa.table(runs | dict(nll=[0.5] * 60, test_accuracy=[0.5] * 60)), folder / "runs.parquet")
    modules = (analyze, audit, dpo, emergence, evaluate, grade, plan, quickstart, squeezing_toy)
    rungs = defaults.rungs(), tiny_checkpoint_rung.get_config()
    for config in (*rungs, plan.get_config("task=dynamics_hh"), *(module.get_config() for module in modules)):
        places = {"traces": "runs.parquet", "table": "table.csv", "data.path": "rows.jsonl", "model.path": "model"}
        there = dict(keys.leaves(config))
        config.update_from_flattened_dict({k: str(folder / name) for k, name in places.items() if there.get(k) == ""})
        if config.experiment in ("analyze", "audit_traces"):
            config.threshold.update(rule="given", perplexity=1.2)
        if config.get("base") and config.experiment != "checkpoint_rung":
            config.model.path = ""
        yield config.experiment, config


def test_a_run_that_has_not_begun_gives_way_to_another_config(tmp_path):
    folder = storage.path(tmp_path / "run")
    with lease.opened(folder, CONFIG):
        (folder / "tokenizer.model").write_bytes(b"of the first")
    with lease.opened(folder, CONFIG | {"seed": 1}):
        assert json.loads((folder / "config.json").read_text())["seed"] == 1
        assert not (folder / "tokenizer.model").exists()


@pytest.mark.parametrize("key", ["boot", "namespace"])
def test_a_holder_in_another_container_is_judged_by_its_heartbeat(tmp_path, monkeypatch, key):
    """Same host name and a process number that means nothing here: it lives as long as it beats."""
    monkeypatch.setattr(lease, "DEAD_SECONDS", 3)
    path = storage.path(tmp_path / "in_use.json")
    holder = lease._here() | {"pid": 2**22 + 1, "started": "7", "token": "theirs"}
    path.write_text(json.dumps(holder))
    with lease.lease(path.parent):  # same container: its process is gone
        pass
    path.write_text(json.dumps(holder | {key: "other"}))
    beats = iter(range(100))
    over = threading.Event()

    def beat():
        while not over.wait(0.3):
            atomic.write_text(tmp_path / "in_use_beat.json", json.dumps({"token": "theirs", "beat": next(beats)}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(lease.InUse), lease.lease(path.parent):
            pass
    finally:
        over.set()
        thread.join()
    with lease.lease(path.parent):  # it has stopped beating
        pass


def test_what_a_killed_launch_left_half_written_is_removed(tmp_path):
    folder = storage.path(tmp_path / "run")
    with lease.opened(folder, CONFIG):
        pass
    (folder / "trace").mkdir()
    left = [folder / ".summary.json.0123456789ab.tmp", folder / "trace" / ".step-00000001.parquet.0123456789ab.tmp"]
    for file in left:
        file.write_bytes(b"half")
    (folder / ".export.tmp").mkdir()
    (folder / ".export.tmp" / "model.safetensors").write_bytes(b"half")
    kept = folder / "notes.tmp"
    kept.write_text("of the user")
    with lease.opened(folder, CONFIG):
        assert not any(file.exists() for file in left) and not (folder / ".export.tmp").exists() and kept.exists()


def test_leftovers_are_what_the_writers_name_so(tmp_path, monkeypatch):
    """The names come from the writers themselves, stopped before they rename."""

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    monkeypatch.setattr(type(storage.path(tmp_path)), "unlink", lambda *a, **k: None)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_bytes(tmp_path / "a.json", b"x")
    [left] = tmp_path.iterdir()
    assert atomic.LEFTOVER.fullmatch(left.name)


def test_what_others_may_be_writing_is_left(tmp_path):
    for name in ("young", "old"):
        (tmp_path / "members").mkdir(exist_ok=True)
        (tmp_path / "members" / f".{name}.json.0123456789ab.tmp").write_text("")
    os.utime(tmp_path / "members" / ".old.json.0123456789ab.tmp", (1, 1))
    atomic.remove_leftovers(storage.path(tmp_path), seconds=3600)
    assert [path.name for path in (tmp_path / "members").iterdir()] == [".young.json.0123456789ab.tmp"]


def test_a_path_that_is_no_plain_text_is_refused_and_a_tilde_is_home(monkeypatch):
    for bad in ("a\0b", os.fsdecode(b"/tmp/\xff"), "a\nb"):
        with pytest.raises(UserError, match="not plain text"):
            storage.path(bad)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(storage.path("~/runs/a")) == "/home/somebody/runs/a"


def test_the_commit_is_that_of_our_own_checkout(tmp_path, monkeypatch):
    """An installed package that lies in somebody's repository has no commit; a checkout has its own."""
    git = lambda *arguments: subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    package = tmp_path / "venv" / "site-packages" / "premem_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git("init", "-q")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.delenv("PREMEM_COMMIT", raising=False)
    monkeypatch.setattr(premem_jax, "__file__", str(package / "__init__.py"))
    assert workdir._git_commit() == "unknown"
    git("add", "-f", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "vendored")
    assert workdir._git_commit() == "unknown"


# ---- Processes ------------------------------------------------------------------------------------------------------


def meet(port, count, indices, seconds=2.0):
    """What each of some processes of a rendezvous says: None, or its error."""
    said = {}

    def one(place, index):
        try:
            said[place] = rendezvous.meet(f"127.0.0.1:{port}", count, index, seconds)
        except UserError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=one, args=each) for each in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said[place] for place in range(len(indices))]


def test_processes_meet_or_say_who_is_missing(free_port):
    assert meet(free_port, 3, (2, 0, 1)) == [None] * 3
    zero, one = meet(free_port, 4, (0, 1))
    assert "processes [2, 3] did not come within 2 s" in zero and "no word from process 0" in one
    [alone] = meet(free_port, 2, (1,), seconds=1)
    assert "no word from process 0" in alone
    assert any("given to two processes" in (each or "") for each in meet(free_port, 3, (0, 1, 1)))


def test_a_coordinator_that_cannot_be_used_is_refused(free_port):
    with socket.socket() as other:
        other.bind(("", free_port))
        other.listen()
        with pytest.raises(UserError, match="Address already in use"):
            rendezvous.meet(f"127.0.0.1:{free_port}", 2, 0, 1)
    for bad in ("nowhere", "127.0.0.1:many", "127.0.0.1:99999999", ":"):
        with pytest.raises(UserError, match="not the host:port"):
            rendezvous.meet(bad, 2, 0, 1)


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_processes_that_do_not_do_the_same_do_not_begin(tmp_path):
    """Another learning rate in process 1: both end with 2, name it, and leave nothing behind."""
    arguments = command([f"--workdir={tmp_path / 'run'}", f"--config.cache={tmp_path / 'cache'}"])
    script = tmp_path / "each.sh"
    script.write_text('#!/bin/sh\nexec "$@" --config.train.learning_rate=1e-$PREMEM_PROCESS\n')
    script.chmod(0o755)
    with pod(2, [str(script), *arguments], tmp_path / "logs") as started:
        assert [process.wait(timeout=120) for process in started] == [2, 2]
    for text in texts(tmp_path / "logs"):
        assert "process 1 does not do what process 0 does (config.train.learning_rate: 1.0 there, 0.1 here)" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_the_environment_does_not_change_numerics(tmp_path):
    """Whatever JAX reads from the environment: the same dtypes and the same random bits."""
    program = (
        f"from premem_jax.running import runtime; runtime.prepare({str(tmp_path)!r})\n"
        "import jax, jax.numpy as jnp\n"
        "key = jax.random.key(3)\n"
        "print(jnp.arange(3.0).dtype, jnp.arange(3).dtype, (jnp.ones(2, 'bfloat16') + jnp.ones(2)).dtype)\n"
        "print(jax.jit(lambda k: jax.random.bits(k, (4,)))(key).tolist(), jnp.zeros(()) / 0)\n"
        "import matplotlib\n"
    )
    odd = dict(
        JAX_ENABLE_X64="1",
        JAX_DEBUG_NANS="1",
        JAX_NUMPY_DTYPE_PROMOTION="strict",
        JAX_DEFAULT_PRNG_IMPL="rbg",
        JAX_THREEFRY_PARTITIONABLE="0",
        JAX_DISABLE_JIT="1",
        JAX_RANDOM_SEED_OFFSET="7",
        MPLBACKEND="of a notebook",
    )
    run = lambda more: subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT | more, capture_output=True, text=True, check=True
    )
    plain, other = run({}).stdout, run(odd).stdout
    assert plain == other and plain.startswith("float32 int32 float32\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noticed_at_the_next_poll(number, monkeypatch):
    monkeypatch.setattr(processes, "_asked", False)
    with processes.stoppable():
        processes.poll()
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            processes.poll()
    with pytest.raises(Stopped), processes.stoppable(polls=False):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1)  # not reached


def test_a_signal_in_the_middle_of_work_is_no_error_of_that_work(tmp_path):
    """A reader takes any error for damage; it would end with 2, which is never started again."""
    np.savez(tmp_path / "a.npz", x=np.ones(3))

    def read(packed):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)

    with pytest.raises(Stopped), processes.stoppable(polls=False):
        npz._read(storage.path(tmp_path / "a.npz"), read)


def test_grading_stops_when_asked(tmp_path, monkeypatch):
    from configs import grade as run_card

    monkeypatch.setattr(processes, "_asked", True)
    (tmp_path / "rows.jsonl").write_text('{"output": "#### 3", "answer": "3"}\n')
    config = run_card.get_config()
    config.data.path = str(tmp_path / "rows.jsonl")
    with pytest.raises(Stopped):
        grade.run(config, storage.path(tmp_path / "run"))
    assert not (tmp_path / "run" / "verdicts.jsonl").exists() and not (tmp_path / "run" / "in_use.json").exists()
