"""A finetune measures what it is asked: the metric is drawn from a trace that has what it takes, and no duty."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from premem_jax.analysis.trace import read_trace
from premem_jax.config import evaluator
from premem_jax.errors import UserError
from premem_jax.experiments import finetune
from tests.configs.tiny import get_config


def config(cache, evals, **changes) -> ConfigDict:
    c = get_config()
    c.base.steps, c.train.epochs, c.cache = 0, 1, str(cache)
    c.data.update(train=8, heldout=0, test=8)
    c.mesh.update(data=1, fsdp=-1)
    c.evals = evals
    c.update_from_flattened_dict(changes)
    return c


def train_nll(folder) -> np.ndarray:
    return read_trace(folder / "trace").split("train").nll[-1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_run_without_evaluators_trains(cache, tmp_path):
    summary = finetune.run(config(cache, {}), tmp_path / "run")
    assert (summary["steps"], summary["evaluations"], summary["threshold"]) == (1, 0, None)
    assert "Nothing was evaluated" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["step"] == 1


def test_a_run_without_samples_or_threshold_has_its_likelihoods(cache, tmp_path):
    """The likelihoods are those of a run that has everything; its page says what was measured last."""
    scored = {"nll": evaluator("likelihood", "train", (), batch=8)}
    sampled = {"answers": evaluator("accuracy", "train", (), batch=8, samples=1, max_new_tokens=4, first_round=4)}
    few = finetune.run(config(cache, scored), tmp_path / "few")
    given = {"threshold.rule": "given", "threshold.perplexity": 1.5}
    all_there = finetune.run(config(cache, scored | sampled, **given), tmp_path / "all")
    np.testing.assert_array_equal(train_nll(tmp_path / "few"), train_nll(tmp_path / "all"))
    assert few["train_nll"] == all_there["train_nll"]
    assert few["pre_memorization_accuracy"] is None and all_there["pre_memorization_accuracy"] is not None
    for name in ("estimate", "pre_memorization_accuracy", "test_accuracy"):
        assert few[name] is None or few[f"{name}_interval"] is not None
        low, high = all_there[f"{name}_interval"] or (0, 1)
        assert all_there[name] is None or low <= all_there[name] <= high
    page = (tmp_path / "few" / "report.html").read_text()
    assert "Measured last: train NLL" in page and "no pre-memorization accuracy" in page
    without = finetune.run(config(cache, scored | sampled, **{"threshold.rule": "none"}), tmp_path / "none")
    assert without["pre_memorization_accuracy"] is None
    assert without["train_accuracy"] == all_there["train_accuracy"]


def test_a_metric_that_cannot_be_had_is_refused_before_training(cache, tmp_path):
    """Scored and sampled training examples ask for the metric, and its rule for held-out ones."""
    evals = {"nll": evaluator("likelihood", "train", ()), "answers": evaluator("accuracy", "train", (), batch=8)}
    with pytest.raises(UserError, match=r"threshold\.split='heldout'.*threshold\.rule=none"):
        finetune.run(config(cache, evals), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
