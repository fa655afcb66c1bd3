"""Mistakes and accidents: each ends with exit status 2 and one message that names the thing, before any training."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from premem_jax.analysis.trace import read_trace
from premem_jax.data.reader import batch_rows
from premem_jax.errors import UserError
from premem_jax.experiments import finetune
from tests import disks
from tests.configs import tiny
from tests.processes import ENVIRONMENT, Run, assert_same, attempts, finish, interrupt, mistake

# ---- Flags and config files, before JAX is imported ------------------------------------------------------------------


def test_help_shows_both_forms_of_options_and_imports_no_jax():
    command = [sys.executable, "-X", "importtime", "-m", "premem_jax.main", "--help"]  # lists imports on stderr
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--config=FILE[:key=value,...]" in done.stdout and "--config.KEY=VALUE" in done.stdout
    assert "--workdir=DIR" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported and not {"jax", "flax", "pyarrow"} & imported


WRONG = (
    (["--config.train.learning_rat=1"], ["learning_rat", "learning_rate"]),
    (["--config.trian.batch=1"], ["trian", "train"]),
    (["--config.seed=abc"], ["config.seed=abc"]),
    (["--config.train=3"], ["config.train=3"]),
    (["--wrkdir=somewhere"], ["wrkdir", "workdir"]),
    (["junk"], ["junk", "--config.key=value"]),
    (["--config.experiment=finetun"], ["finetun", "finetune"]),
    (["--config.experiment=base_model"], ["base_model", "finetune"]),
)
CONFIGS = (
    ("tests/configs/missing.py", ["missing.py", "No such file"]),
    (f"{tiny.__file__}:exmples=3", ["exmples=3", "'examples'"]),
    (f"{tiny.__file__}:examples=many", ["examples=many", "int"]),
    (f"{tiny.__file__}:examples", ["'examples'"]),
    ("", ["--config"]),
)
BROKEN = (
    ("def get_config(arg=None:\n    pass\n", ["mine.py", "line 1"]),
    ("def get_config(arg=None):\n    return nothing\n", ["mine.py:2", "nothing"]),
    ("import nowhere\n", ["mine.py:1", "nowhere"]),
    ("from premem_jax import config\n\n\ndef get_config(arg=None):\n    config.accuracy()\n", ["mine.py:5"]),
    ("x = 1\n", ["get_config"]),
)


def test_wrong_arguments_and_configs_are_named(tmp_path):
    """Each mistake ends the program with exit status 2 and one line, which has the words beside it."""
    expected = [([f"--config={tiny.__file__}", *arguments], words) for arguments, words in WRONG]
    expected += [([f"--config={config}"], words) for config, words in CONFIGS]
    for number, (text, words) in enumerate(BROKEN):
        file = tmp_path / str(number) / "mine.py"
        file.parent.mkdir()
        file.write_text(text)
        expected.append(([f"--config={file}"], words))
    for done, (_, words) in zip(attempts(arguments for arguments, _ in expected), expected, strict=True):
        message = mistake(done)
        assert [word for word in words if word not in message] == [], message


# ---- Settings and data, before any training --------------------------------------------------------------------------


def refused(folder, changes: dict) -> str:
    """The message with which a finetune of the tiny config refuses to start after `changes` to it."""
    config = tiny.get_config()
    config.cache = str(folder / "cache")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        finetune.run(config, folder / "run")
    assert not [name for name in ("trace", "metrics.jsonl", "tensorboard") if (folder / "run" / name).exists()]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mesh.tensor": 3}, ["mesh", "'tensor': 3", "8 device"]),
        ({"mesh.data": 2, "mesh.fsdp": 3}, ["mesh", "8 device"]),
        ({"train.batch": 12}, ["train.batch", "8 parts"]),
        ({"train.batch": 16, "train.micro_batches": 4}, ["micro_batches", "8 parts"]),
        ({"train.batch": 0}, ["train.batch=0"]),
        ({"checkpoint.every": 0}, ["checkpoint.every=0"]),
        ({"evals.train_accuracy.samples": 0}, ["evals.train_accuracy.samples=0"]),
        ({"evals.test_accuracy.split": "tset"}, ["test_accuracy", "'tset'", "test"]),
        ({"evals.train_likelihood.type": "likely"}, ["train_likelihood", "'likely'", "likelihood"]),
        ({"data.task": "gsm"}, ["'gsm'", "gsm8k"]),
        ({"data.train": 0}, ["data.train=0"]),
        ({"data.test": -1}, ["data.test=-1"]),
        ({"data.heldout": 40}, ["heldout", "40", "50"]),
        ({"threshold.rule": "guess"}, ["'guess'", "given"]),
        ({"threshold.rule": "given", "threshold.perplexity": 0.5}, ["perplexity=0.5"]),
        ({"model.preset": "llama_tinny"}, ["'llama_tinny'", "'llama_tiny'"]),
        ({"compute_dtype": "float3"}, ["'float3'", "bfloat16"]),
        ({"tokenizer.kind": "words"}, ["'words'", "bpe"]),
    ],
)
def test_a_wrong_setting_is_named(changes, words, tmp_path):
    message = refused(tmp_path, changes)
    assert [word for word in words if word not in message] == [], message


def test_long_examples_are_counted_and_named_and_left_out_on_request(tmp_path, caplog):
    message = refused(tmp_path / "a", {"data.context": 76})
    count = int(message.split(" of 32 examples")[0].split()[-1])
    assert 0 < count < 32 and "data.context=76" in message and "tokens)" in message and "data.drop_long" in message
    refused(tmp_path / "b", {"data.context": 76, "data.drop_long": True, "train.batch": 12})
    assert f"{count} of 32 examples left out" in caplog.text
    assert "is empty" in refused(tmp_path / "c", {"data.context": 5, "data.drop_long": True})


ROWS = [json.dumps(dict(question=f"What is {i} + 1?", answer=f"It is {i + 1}.\n#### {i + 1}")) for i in range(70)]
GSM8K = {"data.task": "gsm8k", "data.heldout": 60, "data.train": 8, "data.test": 0, "tokenizer.kind": "bpe"}


@pytest.mark.parametrize(
    "train, words",
    [
        (None, ["train.jsonl", "No such file", "--config.data.path"]),
        ("\n".join([*ROWS[:3], '{"question": ', *ROWS[4:]]), ["train.jsonl:4"]),
        ("\n".join([*ROWS[:5], '{"question": "Why?"}', *ROWS[6:]]), ["train.jsonl:6", "answer"]),
        ("\n".join([*ROWS[:6], '["a", "b"]', *ROWS[7:]]), ["train.jsonl:7"]),
        ("\n".join([*ROWS[:7], '{"question": "Why?", "answer": "Because."}', *ROWS[8:]]), ["train.jsonl:8", "####"]),
        ("\n".join([*ROWS[:7], '{"question": "Why?", "answer": 3}', *ROWS[8:]]), ["train.jsonl:8", "string"]),
        (b"\xff\xfe\x00", ["train.jsonl:1", "UTF-8"]),
        ("\n".join(ROWS[:20]), ["8 train", "60 heldout", "20"]),
        ("", ["train"]),
    ],
)
def test_wrong_data_are_named_with_file_and_line(train, words, tmp_path):
    (tmp_path / "test.jsonl").write_text("\n".join(ROWS))
    if train is not None:
        (tmp_path / "train.jsonl").write_bytes(train if isinstance(train, bytes) else train.encode())
    message = refused(tmp_path, GSM8K | {"data.path": str(tmp_path)})
    assert [word for word in words if word not in message] == [], message


def test_an_empty_split_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(ROWS))
    (tmp_path / "test.jsonl").write_text("")
    assert "split 'test' is empty" in refused(tmp_path, GSM8K | {"data.path": str(tmp_path)})


def test_a_base_phase_without_texts_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(ROWS))
    assert "base.steps" in refused(tmp_path, GSM8K | {"data.path": str(tmp_path)})


def test_a_letter_that_the_terminal_lacks_ends_nothing():
    program = "from premem_jax import main; main.main = lambda argv: print('log \\u03c0'); main.cli()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"log \\u03c0\n")


def test_a_mistake_leaves_the_folder_free_and_the_exit_status_2(tmp_path):
    """The next command, with the mistake fixed, may use the same folder."""
    workdir = f"--workdir={tmp_path / 'run'}"
    assert "data.context=20" in mistake(finish(workdir, "--config.data.context=20"))
    assert "train.epochs=0" in mistake(finish(workdir, "--config.train.epochs=0"))


@pytest.mark.parametrize("file", ["notes.txt", "run"])
def test_a_folder_that_is_no_run_is_refused(file, tmp_path):
    if file == "run":
        (tmp_path / "run").write_text("a file")
    else:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / file).write_text("mine")
    assert str(tmp_path / "run") in refused(tmp_path, {})


# ---- Accidents of a run ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_run(straight, tmp_path):
    run = Run(tmp_path / "run", straight.cache)
    message = mistake(finish(*run.arguments, "--config.train.learning_rate=1e30"))
    step = int(message.split("step ")[1].split(":")[0])
    assert "nan" in message or "inf" in message
    config = json.loads((run.workdir / "config.json").read_text())
    lengths = [1] * config["data"]["train"]
    ids = batch_rows(lengths, config["train"]["batch"], config["seed"])[step - 1]
    named = message.split("examples ")[1].split(".")[0]
    assert sorted(map(int, named.split(", "))) == sorted(ids)

    trace = read_trace(run.workdir / "trace")
    assert trace.steps.tolist() == [0, step - 1]
    assert {name: int(split.samples[-1].sum()) for name, split in trace.splits.items()} == {
        "train": 64,
        "heldout": 0,
        "test": 32,
    }
    rows = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == step - 1 and "train_nll" in rows[-1]
    assert np.isfinite([row[name] for row in rows for name in row]).all()


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many MB; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(megabytes: int):
        if why := disks.mount(folder, megabytes):
            pytest.skip(f"cannot mount a small disk: {why}")
        return folder

    yield mount
    disks.unmount(folder)


def test_too_small_a_disk_is_refused_before_the_training(small_disk, tmp_path):
    run = Run(small_disk(8) / "run", tmp_path / "cache")
    message = mistake(finish(*run.arguments))
    assert "GB free" in message and "checkpoint" in message and str(run.workdir) in message
    assert not run.has("trace/*") and not run.cache.joinpath("base").exists()


def test_a_disk_that_fills_up_or_turns_read_only_stops_the_run_which_then_continues(small_disk, straight):
    disk = small_disk(64)
    run, ballast = Run(disk / "run", straight.cache), disk / "ballast"

    def stopped(how, moment) -> str:
        """The last line of the run that is made to stop at that moment."""
        done = []
        status, stderr = interrupt(*run.arguments, when=moment, then=lambda process: done.append(how()))
        assert len(done) == 1 and status == 2 and stderr.count("error: ") == 1, stderr
        assert not run.has("summary.json")
        return stderr.strip().splitlines()[-1]

    evaluated = lambda: run.has("trace/*.parquet")
    fill = lambda: ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 1_000_000))
    assert stopped(fill, evaluated).startswith("error: the disk is full")
    files, expected = run.files(), straight.files()
    assert run.saved == []
    assert {name: data for name, data in files.items() if expected[name] != data}.keys() <= {"metrics.jsonl"}
    ballast.unlink()

    again = lambda: run.has("trace/step-00000004.parquet")
    message = stopped(lambda: disks.remount(disk, "ro"), again)
    assert message.startswith("error: ") and "read-only" in message.lower()
    assert disks.remount(disk, "rw")
    run.finish()
    assert_same(run, straight)


def test_the_suite_has_eight_devices():
    assert jax.device_count() == 8  # the cases of meshes above count on it
