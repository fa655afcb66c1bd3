"""A run knows what it is made of: other data, another tokenizer or other weights are refused by name."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from premem_jax import sharding
from premem_jax.config import evaluator
from premem_jax.data.examples import Example
from premem_jax.errors import Stopped, UserError
from premem_jax.experiments import finetune, materials
from premem_jax.models import hf_config, hf_files
from premem_jax.models.decoder import init
from premem_jax.running import processes, storage
from tests import tiny
from tests.configs.tiny import get_config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return storage.path(tmp_path / "run")


def test_a_run_that_has_begun_goes_on_with_nothing_else(folder):
    materials.claim(folder, {"data": "1", "tokenizer": "2"})
    materials.claim(folder, {"data": "3", "tokenizer": "2"})  # nothing was made of the first
    (folder / "metrics.jsonl").write_text("")
    materials.claim(folder, {"data": "3", "weights": "4"})
    for name in ("data", "tokenizer", "weights"):
        with pytest.raises(UserError, match=f"begun with other {name};"):
            materials.claim(folder, {name: "other"})
    materials.claim(folder, {"data": "3", "tokenizer": "2", "weights": "4"})


def test_a_damaged_record_is_made_again(folder, caplog):
    (folder / "metrics.jsonl").write_text("")
    materials.claim(folder, {"data": "1"})
    path = folder / materials.FILE
    path.write_text(path.read_text().replace('"1"', '"2"'))
    materials.claim(folder, {"data": "1"})
    assert "is damaged" in caplog.text
    assert json.loads(path.read_text())["data"] == "1"


def test_every_field_of_an_example_counts():
    example = Example(1, "p", " t", "a", {"level": "1"}, "r")
    changes = dict(id=2, prompt="q", target=" u", answer="b", metadata={"level": "2"}, reworded="s")
    changes |= dict(rejected=" v", options=(" u", " v"), messages=(("user", "q"),))
    assert changes.keys() == vars(example).keys()
    made = [example, *(Example(**(vars(example) | {name: value})) for name, value in changes.items())]
    assert len({materials.digest(materials.of_examples({"train": [each]})) for each in made}) == len(made)


def test_the_values_of_weights_have_one_digest_on_every_mesh():
    """One changed bit in any array makes another digest."""
    params = tiny.parameters()
    place = lambda tree, mesh: jax.device_put(tree, sharding.shardings(mesh, tree))
    many = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    expected = materials.of_arrays(place(params, tiny.one_device()))
    assert materials.of_arrays(place(params, many)) == expected
    changed = jax.tree.map(np.array, params)
    changed["final_norm"]["scale"].view(np.uint32)[3] ^= 1
    assert materials.of_arrays(place(changed, tiny.one_device())) != expected


def rows(folder, count, first="How many ?"):
    folder.mkdir(exist_ok=True)
    lines = [
        {"question": first if i == 0 else f"What is {i} plus 1 ?", "answer": f"It is {i + 1} .\n#### {i + 1}"}
        for i in range(count)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:4]))


def test_edited_questions_are_refused_until_they_are_restored(tmp_path, monkeypatch):
    """As an edit between two launches of the same command, also of a grader; a flipped bit of the run's tokenizer."""
    data, run = tmp_path / "data", storage.path(tmp_path / "run")
    rows(data, 16)
    c = get_config()
    c.base.steps, c.train.epochs, c.cache, c.checkpoint.every = 0, 2, str(tmp_path / "cache"), 1
    c.data.update(task="gsm8k", path=str(data), train=0, heldout=0, test=0)
    c.tokenizer.update(kind="bpe", vocab_size=300)
    c.evals = {"nll": evaluator("likelihood", "train", (), batch=8)}
    grader = tmp_path / "mine.py"
    grader.write_text("grade = lambda response, answer: answer in response\n")
    c.data.grader = f"python:{grader}:grade"
    polls = iter(range(100))
    ask = lambda: (_ for _ in ()).throw(Stopped) if next(polls) == 2 else None
    monkeypatch.setattr(processes, "poll", ask)
    with pytest.raises(Stopped):
        finetune.run(c, run)
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    rows(data, 16, first="How few ?")
    with pytest.raises(UserError, match=r"begun with other data \(split train, 16 examples\)"):
        finetune.run(c, run)
    rows(data, 16)
    grader.write_text("grade = lambda response, answer: answer == response\n")
    with pytest.raises(UserError, match="begun with other grader"):
        finetune.run(c, run)
    grader.write_text("grade = lambda response, answer: answer in response\n")
    model = bytearray(kept["tokenizer.model"])
    model[-1] ^= 1
    (run / "tokenizer.model").write_bytes(bytes(model))
    with pytest.raises(UserError, match="tokenizer"):
        finetune.run(c, run)
    (run / "tokenizer.model").write_bytes(kept["tokenizer.model"])
    assert finetune.run(c, run)["steps"] == 4


def test_a_model_folder_is_known_by_its_headers(tmp_path):
    config = tiny.config()
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    mesh = tiny.one_device()
    params = jax.device_put(params, sharding.shardings(mesh, params))
    hf_files.save(
        tmp_path / "model", params, config, mesh, description=hf_config.to_hf_config(config), files={}, dtype="float32"
    )
    of = lambda: materials.of_folder(hf_files.Checkpoint(tmp_path / "model"))
    before = of()
    assert of() == before
    [file] = (tmp_path / "model").glob("*.safetensors")
    save_file(load_file(file), file, metadata={"made": "again"})
    assert of() != before
