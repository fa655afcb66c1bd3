"""Runs in a bucket are runs on a disk: the same code, the same files, and nothing that only a disk can do."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.trace import evaluation_steps, read_trace, write_evaluation
from premem_jax.errors import UserError
from premem_jax.models import hf_files
from premem_jax.models.hf_config import to_hf_config
from premem_jax.running import atomic, storage, workdir
from premem_jax.training.checkpoints import finished
from premem_jax.training.metrics import Metrics
from tests import pod as pods
from tests import processes, tiny
from tests.analysis.traces import synthetic_splits
from tests.gcs import Bucket, Object
from tests.processes import LAST, Run, assert_same, finish, interrupt, kill, mistake


@pytest.fixture(scope="module")
def served():
    """One for all tests: the library keeps the address that it first had."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed (the extra gcs)")
    with Bucket() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture
def bucket(served, monkeypatch):
    """An empty bucket, which this process and those that it starts find."""
    served.objects.clear()
    served.refused, served.status, served.held = "", 403, ""
    served.reached.clear()
    for module in processes, pods:
        monkeypatch.setattr(module, "ENVIRONMENT", processes.ENVIRONMENT | served.environment)
    return served


@pytest.fixture(params=["disk", "bucket"])
def folder(request, bucket, tmp_path):
    """The same place on a disk and in a bucket."""
    return storage.path("gs://bucket/place" if request.param == "bucket" else tmp_path / "place [1]")


# ---- Files ----------------------------------------------------------------------------------------------------------


def names(folder) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in storage.files(folder)]


def test_files_are_written_found_moved_and_removed(folder):
    assert storage.files(folder) == []
    for text in ("old", "new — with\r\nall --==0== in it\n"):
        atomic.write_text(folder / "deep" / "b.txt", text)
        assert (folder / "deep" / "b.txt").read_bytes() == text.encode()
    atomic.write_bytes(folder / "a.bin", bytes(range(256)))
    assert names(folder) == ["a.bin", "deep/b.txt"] and (folder / "a.bin").read_bytes() == bytes(range(256))
    storage.move(folder / "deep", folder / "other" / "deeper")
    assert names(folder) == ["a.bin", "other/deeper/b.txt"] and not (folder / "deep").exists()
    for _ in range(2):
        (folder / "a.bin").unlink(missing_ok=True)
    assert names(folder) == ["other/deeper/b.txt"]


def test_what_others_write_is_seen_at_once(bucket):
    """Other processes, and TensorStore in this one: what is in a folder is asked each time."""
    folder = storage.path("gs://bucket/trace")
    for step in range(3):
        assert [file.name for file in storage.files(folder)] == [f"step-{before}" for before in range(step)]
        assert folder.exists() == (step > 0) and not (folder / f"step-{step}").exists()
        bucket.objects[f"trace/step-{step}"] = Object(b"", step + 1)
        assert (folder / f"step-{step}").exists() and len(list(folder.iterdir())) == step + 1


def test_a_large_object_appears_when_its_last_part_is_there(bucket):
    data = np.random.default_rng(0).bytes(51 * 2**20)  # more than gcsfs sends at a time
    atomic.write_bytes("gs://bucket/large", b"old")
    atomic.write_bytes("gs://bucket/large", data)
    assert bucket.objects["large"].data == data and not bucket.uploads


def test_a_refused_write_leaves_the_old_file(bucket):
    atomic.write_text("gs://bucket/file.txt", "old")
    bucket.refused = "POST"
    with pytest.raises(OSError, match="Forbidden"):
        atomic.write_text("gs://bucket/file.txt", "new")
    assert bucket.objects["file.txt"].data == b"old"


def test_a_folder_is_whole_once_it_has_its_last_file(folder):
    (folder / "half").mkdir(parents=True)

    def fill(place, last=True):
        (place / "weights").write_bytes(b"1")
        if last:
            (place / "config").write_bytes(b"2")

    with pytest.raises(ZeroDivisionError), atomic.whole_folder(folder / "model") as place:
        fill(place, last=1 / 0)
    assert names(folder) == []
    fill_again = folder / "model" if storage.in_bucket(folder) else folder / ".model.tmp"
    fill_again.mkdir(parents=True)
    (fill_again / "left by a killed process").write_bytes(b"")
    with atomic.whole_folder(folder / "model") as place:
        fill(place, last=False)
        assert not (folder / "model" / "config").exists()
        fill(place)
    assert names(folder) == ["model/config", "model/weights"]


@pytest.mark.parametrize("scheme", ["s3", "az", "http"])
def test_other_stores_are_refused(scheme):
    with pytest.raises(UserError, match=rf"{scheme}://there/run: .*gs://BUCKET/FOLDER"):
        storage.path(f"{scheme}://there/run")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/run: buckets need gcsfs; pip install -e '\.\[gcs\]'"):
        storage.path("gs://bucket/run")


def test_weights_in_a_bucket_are_refused_with_the_mend():
    with pytest.raises(UserError, match=r"model\.path=gs://bucket/model: .*gcloud storage cp -r gs://bucket/model"):
        hf_files.Checkpoint("gs://bucket/model")


# ---- Parts of a run -------------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_config(folder):
    workdir.claim(folder, {"seed": 0, "cache": "there"})
    workdir.claim(folder, {"seed": 0, "cache": "elsewhere"})
    workdir.claim(folder, {"seed": 1, "cache": ""})  # nothing was begun
    atomic.write_text(folder / "metrics.jsonl", "")
    with pytest.raises(UserError, match="seed: 1 there, 2 here"):
        workdir.claim(folder, {"seed": 2, "cache": ""})
    assert json.loads((folder / "config.json").read_bytes())["seed"] == 1
    with pytest.raises(UserError, match=r"not empty and holds no config\.json"):
        workdir.claim(folder.parent, {"seed": 0})
    workdir.check_room(folder, 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_may_not_be_read_is_named(bucket, status):
    bucket.refused, bucket.status = "GET", status
    message = mistake(finish("--workdir=gs://bucket/run"))
    assert message.startswith("gs://bucket/run cannot be read (") and "gcloud auth application-default login" in message
    assert not bucket.objects


def test_a_bucket_that_may_not_be_written_is_named(bucket):
    bucket.refused = "POST"
    with pytest.raises(UserError, match="cannot write to gs://bucket/run: OSError: Forbidden"):
        workdir.claim(storage.path("gs://bucket/run"), {"seed": 0})


def test_a_trace_in_a_bucket_is_the_trace(bucket, tmp_path):
    places = [tmp_path / "one", storage.path("gs://bucket/runs/one")]
    for place in places:
        for step in (2, 1):
            write_evaluation(place / "trace", step, step / 2, synthetic_splits(0, step), {"distance": step})
        atomic.write_text(place / "config.json", '{"data": {"task": "gsm8k"}, "model": {"preset": "llama"}}')
    assert evaluation_steps(places[1] / "trace") == [1, 2] and evaluation_steps(places[1] / "nothing") == []
    on_disk, there = (read_trace(place / "trace") for place in places)
    np.testing.assert_array_equal(on_disk.split("train").nll, there.split("train").nll)
    bucket.download("runs/one", tmp_path / "copy")
    for step in (1, 2):
        name = f"trace/step-{step:08d}.parquet"
        assert (tmp_path / "copy" / name).read_bytes() == (places[0] / name).read_bytes()
    for place in "gs://bucket", "gs://bucket/runs/one", "gs://bucket/runs/one/trace":
        [run] = read_runs(place)
        assert run.name == "one" and list(run.measures["distance"]) == [1, 2]
        np.testing.assert_array_equal(run.train.correct, on_disk.split("train").correct)
    path = places[1] / "trace" / "step-00000001.parquet"
    atomic.write_bytes(path, path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"gs://bucket/runs/one/trace/step-00000001\.parquet is cut short or damaged"):
        evaluation_steps(places[1] / "trace")


def test_a_checkpoint_that_is_being_written_is_not_finished(bucket):
    folder = storage.path("gs://bucket/run/checkpoints")
    assert finished(folder) == []
    for name in "4/default/d/0", "4/commit_success.txt", "8/default/d/0", "8/default/commit_success.txt":
        atomic.write_bytes(folder / name, b"")
    assert (folder / "8").exists() and finished(folder) == [4]


def test_metrics_go_on_in_a_bucket(bucket):
    folder = storage.path("gs://bucket/run")
    for resumed, steps in ((0, range(4)), (2, range(3, 6))):
        metrics = Metrics(folder, resumed)
        for step in steps:
            metrics.write(step, {"loss": 1 / (1 + step)}, seconds=0.5)
        metrics.close()
    rows = [json.loads(line) for line in bucket.objects["run/metrics.jsonl"].data.splitlines()]
    assert rows == [{"step": step, "loss": 1 / (1 + step)} for step in (0, 1, 2, 3, 4, 5)]
    events = [stored.data for name, stored in bucket.objects.items() if name.startswith("run/tensorboard/events")]
    assert events and all(data.count(b"seconds") >= 3 for data in events)


def test_an_export_to_a_bucket_is_the_export(bucket, tmp_path):
    config, mesh = tiny.CONFIG, sharding.make_mesh(dict(data=1, fsdp=2, tensor=1), tiny.jax.devices()[:2])
    params = tiny.jax.device_put(tiny.parameters(), sharding.shardings(mesh, tiny.parameters()))
    options = dict(description=to_hf_config(config), files={"tokenizer.model": b"\n"}, shard_bytes=2**14)
    atomic.write_bytes("gs://bucket/export/left-by-a-killed-process", b"")
    for place in tmp_path / "export", storage.path("gs://bucket/export"):
        hf_files.save(place, params, config, mesh, **options)
        with pytest.raises(UserError, match="exists already"):
            hf_files.save(place, params, config, mesh, **options)
    bucket.download("export", tmp_path / "copy")
    files = {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()} and len(files) > 4


# ---- Whole runs -----------------------------------------------------------------------------------------------------


def kill_at(bucket, written: str, *arguments) -> None:
    """Starts the program and kills it while it waits for the object with `written` in its name to be written."""
    bucket.reached.clear()
    bucket.held = written
    interrupt(*arguments, when=bucket.reached.is_set, then=kill)
    bucket.held = ""
    assert bucket.reached.is_set(), f"no {written} was written"
    assert not any(name.endswith(written) for name in bucket.objects)


def ended(bucket, tmp_path, *arguments) -> Run:
    """The run, continued to its end, as a folder on the disk."""
    done = finish(*arguments)
    assert done.returncode == 0, done.stderr
    bucket.download("runs/one", tmp_path / "one")
    return Run(tmp_path / "one", tmp_path / "cache")


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk(straight, bucket, tmp_path):
    """Killed in the middle of a save, and continued."""
    arguments = "--workdir=gs://bucket/runs/one", f"--config.cache={straight.cache}"
    kill_at(bucket, "checkpoints/8/commit_success.txt", *arguments)
    assert "runs/one/checkpoints/4/commit_success.txt" in bucket.objects
    assert_same(ended(bucket, tmp_path, *arguments), straight)
    assert b"gs://bucket/runs/one" in bucket.objects["runs/one/report.html"].data
    message = mistake(finish(*arguments, "--config.train.batch=16"))
    assert "gs://bucket/runs/one holds the run of another config" in message


@pytest.mark.slow
def test_a_run_whose_cache_is_in_the_bucket_is_killed_again_and_again(straight, bucket, tmp_path):
    """The base model is made there, too; in the end the last checkpoint is damaged."""
    workdir = "--workdir=gs://bucket/runs/one"
    for moment in (
        "checkpoints/12/default/commit_success.txt",  # of the base model
        "trace/step-00000005.parquet",
        "one/checkpoints/12/commit_success.txt",
        "summary.json",
    ):
        kill_at(bucket, moment, workdir)
    sizes = {name: len(stored.data) for name, stored in bucket.objects.items() if "one/checkpoints/12/" in name}
    damaged = max(sizes, key=sizes.get)
    bucket.objects[damaged] = bucket.objects[damaged]._replace(data=bucket.objects[damaged].data[:1000])
    assert_same(ended(bucket, tmp_path, workdir), straight)
    assert any(name.startswith(f"runs/one/unreadable/checkpoint-{LAST}-0/") for name in bucket.objects)
    assert any(name.startswith("runs/cache/programs/") for name in bucket.objects)
    assert any(name.startswith("runs/cache/base-") for name in bucket.objects)
    assert not os.path.exists("gs:")


@pytest.mark.slow
def test_two_processes_work_in_a_bucket(straight, bucket, tmp_path):
    """Both killed in the middle of a save, and continued by two."""
    arguments = "--workdir=gs://bucket/runs/one", f"--config.cache={straight.cache}"
    run = SimpleNamespace(arguments=arguments)
    bucket.held = "checkpoints/8/commit_success.txt"
    stop = lambda running: [process.kill() for process in running]
    ended, said = pods.run_pod(2, run, logs=tmp_path / "killed", when=bucket.reached.is_set, then=stop)
    bucket.held = ""
    assert ended == [-9, -9] and not any(name.endswith("checkpoints/8/commit_success.txt") for name in bucket.objects)
    assert "runs/one/checkpoints/4/commit_success.txt" in bucket.objects
    ended, said = pods.run_pod(2, run, logs=tmp_path / "continued")
    assert ended == [0, 0], said
    bucket.download("runs/one", tmp_path / "one")
    pods.assert_close(Run(tmp_path / "one", tmp_path / "cache"), straight)
