"""A killed run continues as if nothing had happened: the same command gives the same files, bit for bit."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.tasks import task as tasks
from premem_jax.training.checkpoints import Checkpoints
from tests.processes import LAST, Run, assert_same, finish, mistake


@pytest.fixture
def run(straight, tmp_path) -> Run:
    return Run(tmp_path / "run", straight.cache)


MOMENTS = {  # in the order in which an uninterrupted run comes to them
    "in the middle of the first evaluation": lambda run: run.has("tensorboard/*") and not run.has("trace/*.parquet"),
    "before the first checkpoint": lambda run: (
        run.has("trace/step-00000000.parquet") and not run.saved and not run.has("checkpoints/*tmp*")
    ),
    "in the middle of an evaluation": lambda run: run.saved == [4] and not run.has("trace/step-00000004.parquet"),
    "between checkpoints": lambda run: run.has("trace/step-00000005.parquet") and run.saved == [4],
    "in the middle of a save": lambda run: run.has("checkpoints/8.orbax-checkpoint-tmp*") and run.saved == [4],
    "after an evaluation, before the next checkpoint": lambda run: (
        run.has("trace/step-00000010.parquet") and run.saved == [4, 8]
    ),
    "in the middle of the report": lambda run: (
        run.has("trace/step-00000012.parquet") and LAST in run.saved and not run.has("summary.json")
    ),
}


def test_a_run_killed_at_every_moment_continues(straight, run):
    for moment in MOMENTS.values():
        run.kill_when(moment)
    run.finish()
    assert_same(run, straight)


@pytest.mark.slow
def test_a_run_killed_in_the_base_phase_continues(straight, tmp_path):
    run = Run(tmp_path / "run", tmp_path / "cache")
    shutil.copytree(straight.cache / "programs", run.cache / "programs")

    def in_the_base_phase(run):
        steps = [int(path.name) for path in run.cache.glob("base-*/checkpoints/*") if path.name.isdigit()]
        return bool(steps) and max(steps) < LAST

    run.kill_when(in_the_base_phase, made=("run", "cache"))
    run.finish()
    assert_same(run, straight)
    (mine,), (theirs,) = run.cache.glob("base-*/metrics.jsonl"), straight.cache.glob("base-*/metrics.jsonl")
    assert mine.read_bytes() == theirs.read_bytes()


def test_the_report_has_the_texts_of_every_example(straight):
    splits = tasks.load("arithmetic", path="", train=32, heldout=64, test=16, seed=0, cache="").splits
    expected = [(name, e.id, e.prompt, e.target.strip()) for name in splits for e in splits[name]]
    rows = [json.loads(line) for line in (straight.workdir / "examples.jsonl").read_text().splitlines()]
    assert [tuple(row.values()) for row in rows] == expected
    page = (straight.workdir / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert {text for row in expected for text in row[2:]} <= set(data["texts"])
    assert {split["name"]: split["example"] for split in data["splits"]} == {
        name: [e.id for e in examples] for name, examples in splits.items()
    }
    drawn = [(split["name"], len(kept)) for split in data["splits"] for kept in split["responses"].values()]
    assert drawn == [("train", 5)] * 32 + [("test", 3)] * 16


LOST = "step-00000004.parquet"


def damage(run: Run, step: int) -> None:
    """Cuts short the largest file of a checkpoint."""
    files = [path for path in (run.workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_an_unreadable_checkpoint_gives_way_to_the_one_before(straight, run):
    shutil.copytree(straight.workdir, run.workdir)
    damage(run, LAST)
    done = run.finish()
    assert f"checkpoint {LAST} cannot be read" in done.stderr and "trying checkpoint 8" in done.stderr
    assert "at step 8 of 12" in done.stdout
    assert run.has(f"unreadable/checkpoint-{LAST}-*")
    assert_same(run, straight)


def test_a_run_whose_checkpoints_are_all_unreadable_starts_over(straight, run):
    shutil.copytree(straight.workdir, run.workdir)
    for step in run.saved:
        damage(run, step)
    done = run.finish()
    assert "starting over" in done.stderr
    assert len(list(run.workdir.glob("unreadable/*"))) == 2
    for path in ("trace/step-00000004.parquet", "metrics.jsonl"):
        assert (run.workdir / path).read_bytes() == (straight.workdir / path).read_bytes()
    assert_same(run, straight)


def test_what_is_damaged_is_named_and_made_again_where_it_can_be(straight, run):
    """Rows and texts for people come back; the weights of step 4 are not kept, so that its evaluation is lost."""
    shutil.copytree(straight.workdir, run.workdir)
    lost, texts = (run.workdir / kind / name for kind, name in (("trace", LOST), ("samples", "step-00000012.jsonl")))
    lost.write_bytes(lost.read_bytes()[:100])
    texts.write_bytes(texts.read_bytes().replace(b'"verdict"', b'"werdict"', 1))
    metrics = run.workdir / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:-5]))
    for name, damage in (
        ("seconds.json", b"[]"),
        ("unfinished.npz", b""),
        ("examples.jsonl", b"{"),
        ("summary.json", b""),
    ):
        (run.workdir / name).write_bytes(damage)
    done = run.finish()
    for path in (lost, texts, run.workdir / "seconds.json"):
        assert str(path) in done.stderr and run.has(f"unreadable/{path.name}-0")
    assert "the evaluation at step 4 is lost" in done.stderr
    expected = {name: data for name, data in straight.files().items() if name != f"trace/{LOST}"}
    assert run.files() == expected
    assert run.summary()["evaluations_lost"] == [4]
    assert "evaluation at step 4 is lost" in (run.workdir / "report.html").read_text()
    assert "is lost" not in (straight.workdir / "report.html").read_text()


def test_a_finished_run_stays_as_it_is(straight, run):
    """And metrics come back from either copy."""
    shutil.copytree(straight.workdir, run.workdir)
    (run.workdir / "metrics.sealed").write_bytes(b"")
    done = run.finish()
    assert "are taken as they are" in done.stderr
    assert_same(run, straight)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_a_damaged_file_is_named_and_kept(name, straight, run):
    shutil.copytree(straight.workdir, run.workdir)
    path = run.workdir / name
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in mistake(finish(*run.arguments))
    assert len(path.read_bytes()) == 100


def test_another_config_is_refused(straight):
    before = straight.files()
    message = mistake(finish(*straight.arguments, "--config.train.batch=16"))
    assert "train.batch: 8 there, 16 here" in message and "--workdir" in message
    assert straight.files() == before


def test_a_checkpoint_is_the_state_of_its_step(tmp_path):
    """Updates donate the state while Orbax writes it in the background: what is written must not change with them."""
    mesh = sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1))
    shapes = {"embedding": jax.ShapeDtypeStruct((8192, 2048), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    layout = sharding.shardings(mesh, shapes)
    begin = lambda: {"embedding": jax.random.normal(jax.random.key(0), (8192, 2048)), "step": jnp.int32(0)}
    update = jax.jit(
        lambda s: {"embedding": s["embedding"] * 0.5 + 1, "step": s["step"] + 1}, donate_argnums=0, out_shardings=layout
    )
    state = update(jax.jit(begin, out_shardings=layout)())
    expected = np.array(state["embedding"], copy=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, state)
    while any((tmp_path / "checkpoints").glob("*tmp*")) or int(state["step"]) < 5:  # as long as it is being written
        state = update(state)
    checkpoints.wait()
    restored = checkpoints.restore(mesh, shapes)
    checkpoints.close()
    assert int(restored["step"]) == 1
    np.testing.assert_array_equal(np.asarray(restored["embedding"]), expected)
    assert not np.array_equal(np.asarray(state["embedding"]), expected)
