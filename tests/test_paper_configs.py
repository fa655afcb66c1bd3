"""The paper's studies as configs: their settings, and a few real steps with a small model in the place of the large."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from configs import curate, plan
from premem_jax.errors import UserError
from premem_jax.members import config_of, members_of
from tests.processes import ENVIRONMENT, QUICK, command
from tests.shared import shared

CONFIGS = Path(__file__).parents[1] / "configs"
STAND_INS = {"llama3_8b": "llama_tiny", "gemma2_9b": "gemma_tiny"}
every_study = pytest.mark.parametrize("task", ["gsm8k", "math"])
every_model = pytest.mark.parametrize("model", STAND_INS)


def config(model, task, arg=None):
    spec = importlib.util.spec_from_file_location("config", CONFIGS / f"{model}_{task}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


@every_study
@every_model
def test_settings_that_the_paper_states(model, task):
    c, math = config(model, task, "lr=5e-5,epochs=3"), task == "math"
    assert (c.train.learning_rate, c.train.epochs, c.train.warmup_steps) == (5e-5, 3, 20)
    assert (c.optimizer.b1, c.optimizer.b2, c.optimizer.eps, c.optimizer.clip_norm) == (0.9, 0.999, 1e-8, 2.0)
    assert c.train.batch == (24 if math else 128) and c.optimizer.weight_decay == (0.0 if math else 0.01)
    for name in "train_accuracy", "test_accuracy":
        e = c.evals[name]
        assert (e.samples, e.temperature, e.epochs) == (5, 0.8, (1, 2, 3))
        assert (e.top_p, e.max_new_tokens) == ((1.0, 1024) if math else (0.95, 512))


@every_study
@every_model
def test_a_plan_and_a_curation_take_the_settings_of_the_models_own_config(model, task):
    own, option = config(model, task), f"model={model},task={task}"
    for made in plan.get_config(option), curate.get_config(option):
        assert made.train == own.train and made.optimizer == own.optimizer and made.data.buckets == own.data.buckets
        assert made.model == own.model and made.evals.train_accuracy == own.evals.train_accuracy


@every_study
def test_sizes_of_the_training_set(task):
    rows = 7500 if task == "math" else 7473
    train = lambda size: config("llama3_8b", task, f"size={size}").data.train
    assert (train("full"), train("half"), train("quarter")) == (0, rows // 2, rows // 4)
    with pytest.raises(UserError, match="size='third': choose full, half, quarter"):
        train("third")


@every_study
@every_model
def test_the_groups_of_the_paper(model, task):
    """As many runs as were published, each once, with the sizes and epochs of facts known of them."""
    spec = importlib.util.spec_from_file_location("config", CONFIGS / f"sweep_{model}_{task}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    settings = [config_of(c, member) for member in members_of(c).values()]
    number = {("llama3_8b", "gsm8k"): 13, ("llama3_8b", "math"): 11}.get((model, task), 14)
    assert len(settings) == number
    parts = {(s.data.train, s.train.epochs) for s in settings if s.data.train}
    rows = 7500 if task == "math" else 7473
    assert parts == {(rows // 2, 6), (rows // 4, 12)}
    assert all(s.experiment == "finetune" and s.evals.train_accuracy.epochs == tuple(range(1, 13)) for s in settings)


@pytest.mark.slow
@every_study
@every_model
def test_a_few_steps_with_a_small_model(model, task, tmp_path):
    """On eight devices, with the mesh, accumulation, chunks, remat and evaluators of the study."""
    arguments = [
        f"--config.model.preset={STAND_INS[model]}",
        "--config.tokenizer.vocab_size=1024",
        "--config.compute_dtype=float32",  # CPUs have no fast bf16
        "--config.data.buckets=(256,384)",
        "--config.data.context=384",
        "--config.data.drop_long=True",
        f"--config.data.path={shared(f'data/{task}')}",
        "--config.data.train=64",
        "--config.data.test=72",
        "--config.train.batch=32" if task == "gsm8k" else "--config.train.batch=24",
        "--config.train.packed_tokens=(192,256)",
        f"--config.cache={tmp_path / 'cache'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    for name in "train", "test":
        arguments += [f"--config.evals.{name}_likelihood.batch=32", f"--config.evals.{name}_accuracy.batch=32"]
        arguments += [f"--config.evals.{name}_accuracy.samples=2", f"--config.evals.{name}_accuracy.max_new_tokens=6"]
    environment = ENVIRONMENT | {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=8"}
    run = command(arguments, CONFIGS / f"{model}_{task}.py:epochs=1")
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] in (1, 2, 3) and summary["evaluations"] == 1
    assert summary["device"].startswith("8 x") and summary["threshold"] > 1
    assert all(summary[key] is not None for key in ("train_nll", "train_accuracy", "test_accuracy"))
