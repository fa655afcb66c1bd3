"""A finished run goes on with more epochs and another evaluator, as if it had them from the start."""

import json
import shutil

import numpy as np
import pytest

from configs import evaluate as run_card
from premem_jax.analysis.trace import read_trace
from premem_jax.config import evaluator
from premem_jax.errors import UserError
from premem_jax.experiments import evaluate, finetune
from tests.configs.tiny import get_config

EPOCHS = (0, 1, 2, 3, 4)  # of one update each


def config(cache, epochs, evals, **changes):
    c = get_config()
    c.base.steps, c.cache, c.evals = 0, str(cache), evals
    c.data.update(train=8, heldout=8, test=8)
    c.mesh.update(data=1, fsdp=-1)
    # A warm-up that does not end has no rate that depends on the number of epochs.
    c.train.update(epochs=epochs, batch=8, warmup_steps=100, learning_rate=0.3)
    c.checkpoint.update(every=1, keep=2)
    c.log_every = 1
    c.update_from_flattened_dict({"threshold.rule": "given", "threshold.perplexity": 100.0} | changes)
    return c


def evals(**more):
    return {"nll": evaluator("likelihood", "train", EPOCHS, batch=8)} | more


HELDOUT = {"heldout": evaluator("likelihood", "heldout", EPOCHS, batch=8)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`short`, of two epochs, and `long`, of four and with another evaluator."""
    root = tmp_path_factory.mktemp("extended")
    finetune.run(config(root / "cache", 2, evals(), **{"checkpoint.export": True}), root / "short")
    finetune.run(config(root / "cache", 4, evals(**HELDOUT)), root / "long")
    return root


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_more_epochs_and_another_evaluator_are_as_from_the_start(place, tmp_path):
    """Updates bit for bit; evaluations at the steps whose weights are kept (1 and 2) and at the new ones (3, 4)."""
    run = shutil.copytree(place / "short", tmp_path / "run")
    before = (run / "trace" / "step-00000000.parquet").read_bytes()
    summary = finetune.run(config(place / "cache", 4, evals(**HELDOUT), extend=True), run)
    assert metrics(run) == metrics(place / "long") and [row["step"] for row in metrics(run)] == [1, 2, 3, 4]
    mine, theirs = read_trace(run / "trace"), read_trace(place / "long" / "trace")
    assert mine.steps.tolist() == theirs.steps.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(mine.split("train").nll, theirs.split("train").nll)
    np.testing.assert_array_equal(mine.split("heldout").nll[1:], theirs.split("heldout").nll[1:])
    assert np.isnan(mine.split("heldout").nll[0]).all()
    assert (run / "trace" / "step-00000000.parquet").read_bytes() == before
    assert "extended from 2 to 4 epochs" in (run / "report.html").read_text()
    assert "with 0.006 there" in summary["extended"]
    assert json.loads((run / "config.0.json").read_text())["train"]["epochs"] == 2
    files = {path: path.read_bytes() for kind in ("trace", "samples") for path in (run / kind).iterdir()}
    finetune.run(config(place / "cache", 4, evals(**HELDOUT)), run)  # the same command again has nothing to do
    assert {path: path.read_bytes() for path in files} == files and not (run / "config.1.json").exists()


def test_a_checkpoint_is_evaluated_without_an_export(place, tmp_path):
    """The newest is the model that was exported, bit for bit; another gives what its evaluation in the run gave."""
    rows = [json.loads(line) for line in (place / "short" / "examples.jsonl").read_text().splitlines()]
    rows = [{"prompt": row["prompt"], "target": f" {row['reference']}"} for row in rows if row["split"] == "train"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def nll(path):
        c = run_card.get_config()
        c.model.path, c.data.path, c.cache = str(place / path), str(tmp_path / "rows.jsonl"), str(place / "cache")
        c.update_from_flattened_dict({"compute_dtype": "float32", "likelihood.batch": 8})
        evaluate.run(c, tmp_path / path.replace("/", "-"))
        lines = (tmp_path / path.replace("/", "-") / "evaluation.jsonl").read_text().splitlines()
        return [json.loads(line)["target_nll"] for line in lines]

    newest, exported, at_1 = map(nll, ("short", "short/export", "short/checkpoints/1"))
    assert newest == exported
    traced = read_trace(place / "short" / "trace").split("train").nll
    np.testing.assert_allclose([at_1, newest], traced[1:], atol=1e-5)
    assert np.abs(np.subtract(at_1, newest)).max() > 0.1
    with pytest.raises(UserError, match=r"no checkpoint of step 7; kept: 1, 2"):
        nll("short/checkpoints/7")


def test_what_cannot_change_is_named_with_both_values(place):
    before = {path: path.read_bytes() for path in (place / "short").rglob("*") if path.is_file()}
    ways = [
        (dict(extend=True), {"train.learning_rate": 0.1}, r"train.learning_rate: 0.3 there, 0.1 here\); it can be"),
        (dict(extend=True), {"data.train": 7, "seed": 3}, r"data.train: 8 there, 7 here; seed: 0 there, 3 here\)"),
        (dict(extend=True), {"train.epochs": 1}, "train.epochs: 2 there, 1 here"),
        ({}, {"train.epochs": 4}, r"train.epochs: 2 there, 4 here\).*go on with these settings: --config.extend=true"),
        ({}, {"train.epochs": 4, "seed": 3}, r"seed: 0 there, 3 here.*use another --workdir$"),
    ]
    for extend, changes, words in ways:
        with pytest.raises(UserError, match=words):
            finetune.run(config(place / "cache", 2, evals(), **extend | changes), place / "short")
    assert {path: path.read_bytes() for path in (place / "short").rglob("*") if path.is_file()} == before
