"""Every key of every config: wrong values are refused by name before JAX is imported, odd ones work as documented."""

import functools
import importlib
import inspect
import json
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from premem_jax import config as defaults
from premem_jax import evaluators, experiments, keys, together
from premem_jax.analysis import conclusion, emergence_law, threshold
from premem_jax.analysis.readers import release
from premem_jax.analysis.trace import read_trace
from premem_jax.data import tokenizer_files
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Evaluator
from premem_jax.experiments import finetune
from premem_jax.models.backends import BACKENDS
from premem_jax.models.decoder import REMAT
from premem_jax.tasks import task as tasks
from tests.processes import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted({*ROOT.glob("configs/*.py"), *ROOT.glob("tests/configs/*.py")} - {ROOT / "configs/common.py"})
FILES.remove(ROOT / "configs/emergence_checkpoints.py")  # has none without a folder
NEEDED = {"traces": "runs", "table": "rows.csv", "data.path": "rows.jsonl", "model.path": "model"}  # of no default


def config_of(file: Path) -> ConfigDict:
    """The config of a file, with the paths that its experiment cannot do without."""
    config = importlib.import_module(f"{file.parent.relative_to(ROOT)}.{file.stem}".replace("/", ".")).get_config()
    needed = {key: value for key, value in NEEDED.items() if key in dict(keys.leaves(config))}
    if "train" not in config:
        config.update_from_flattened_dict(needed)
    return config


def every_evaluator() -> ConfigDict:
    """A finetune that has all evaluators and so all of their options."""
    config = config_of(ROOT / "tests/configs/tiny.py")
    config.evals.variance = defaults.evaluator("gradient_variance", "train", (), batch=8, batches=2)
    config.evals.confidence = defaults.evaluator("confidence", "train", ())
    config.evals.probe = defaults.evaluator("probe", "train", ())
    config.evals.squeezing = defaults.evaluator("squeezing", "train", ())
    config.evals.exact = defaults.evaluator("exact_match", "train", ())
    config.evals.options = defaults.evaluator("option_likelihood", "train", ())
    return config


CONFIGS = {
    "finetune": every_evaluator(),
    **{config.experiment: config for file in FILES if (config := config_of(file)).experiment != "finetune"},
}


def changed(config: ConfigDict, changes: dict) -> ConfigDict:
    """A copy with other values, of whatever type."""
    copy = config.to_dict()
    for key, value in changes.items():
        *groups, last = key.split(".")
        functools.reduce(dict.__getitem__, groups, copy)[last] = value
    return ConfigDict(copy)


def refusal(config: ConfigDict) -> str | None:
    """The message with which a config is refused."""
    try:
        keys.check(config)
    except UserError as error:
        return str(error)
    return None


# ---- The tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_of_every_config_has_a_limit_and_keeps_it(file):
    config = config_of(file)
    assert refusal(config) is None
    table = keys.table_of(config)
    assert set(dict(keys.leaves(config))) <= table.keys()
    for key, (limit, about) in table.items():
        assert limit.says and 10 < len(f"{key} {about}") < 120 and "\n" not in about


def test_names_are_those_of_the_code_that_reads_them():
    options = lambda key: set(keys.FINETUNE[key][0].choices)
    modules = {module.name for module in pkgutil.iter_modules(experiments.__path__)}
    assert modules > set(keys.TABLES) > set(experiments.POLLING) | set(experiments.ELSEWHERE)
    assert options("data.task") == set(tasks.names()) > set(keys.GRADED)
    assert options("model.remat") == set(REMAT) and options("model.attention") == set(BACKENDS)
    assert options("tokenizer.kind") == set(tokenizer_files.TRAINING)
    subset = keys.TABLES["analyze"]["release.subset"][0]
    assert subset.choices == release.SUBSETS
    assert keys.TABLES["analyze"]["release.test_samples"][0].choices == release.SAMPLES
    assert options("threshold.rule") == set(conclusion.RULES)
    assert keys.TABLES["emergence"]["form"][0].choices == emergence_law.FORMS
    assert together.MIN_HELDOUT == threshold.MIN_EXAMPLES
    assert set(keys.EVALUATOR["type"][0].choices) == set(evaluators.names())


@pytest.mark.parametrize("kind", evaluators.names())
def test_an_evaluator_says_all_about_its_options(kind):
    """Every argument has a limit, which its default keeps; each module beside the machinery is an evaluator."""
    found = evaluators.find(kind)
    arguments = inspect.signature(found).parameters
    assert found.OPTIONS.keys() == found.defaults().keys() == arguments.keys() - {"split", "run"}
    assert issubclass(found, Evaluator) and found.phase and found.layout in ("train", "decode")
    for name, (limit, _) in found.OPTIONS.items():
        limit.check(name, arguments[name].default, "its default")


# Tried on every key: negative, zero, huge, not finite, and of other types.
WRONG = {
    **{repr(value): value for value in (-1, -0.5, -(10**30), 0, 0.0, 10**30, 1e308, math.nan, math.inf, -math.inf)},
    **{
        repr(value): value
        for value in (None, True, False, "x", "", "a\0b", "a\ud800", b"1", (), (-1,), (math.nan,), ("x",), {})
    },
    "10**400": 10**400,
}
FLAGS = {"drop_long", "export", "skip_settled", "drafted", "reworded", "alone", "search", "reference_free", "extend"}
TEXTS = {
    "forecast",
    "cache",
    "grader",
    "prompt",
    "target",
    "path",
    "added",
    "pool",
    "url",
    "model",
    "opening",
    "response",
}
TEXTS |= {"forecast", "by", "texts"}
RATES = {"learning_rate", "prompt_weight", "b1", "b2", "weight_decay", "perplexity", "temperature", "below"}
RATES |= {"label_smoothing", "delta", "weight", "eta", "gate", "zipf", "asked", "prose"}
COUNTS = {"seed", "train", "heldout", "test", "steps", "warmup_steps", "decode_tensor", "start", "keep_texts"}
COUNTS |= {"prompts"}
# What is allowed nevertheless, by the last part of the key, and where that part does not decide it.
ALLOWED = {
    "-1": {"fsdp"},  # the axis that takes the rest of the devices
    "0": RATES | COUNTS,
    "0.0": RATES,
    repr(10**30): {"learning_rate", "clip_norm", "perplexity", "flops"},
    "'x'": TEXTS | {"traces", "table", "truth", "rows", "template"},
    "''": TEXTS | {"check", "truth"},
    "()": {"buckets", "packed_tokens", "epochs", "amounts", "planted", "trackers", "mixes"},
    "True": FLAGS,
    "False": FLAGS,
}
PAIRWISE = ("preference", "dynamics", "plan_preference")
BESIDE = {("emergence", "draws", "0"), ("evaluate", "sampling.samples", "0"), ("evaluate", "data.task", "''")}
ZEROS = ("sft.epochs", "on_policy.every", "influence.every", "influence.draws")
BESIDE |= {("audit_traces", key, "''") for key in ("select", "rows")} | {
    ("finetune", "lora.rank", "0"),
    ("finetune", "lora.targets", "()"),
}
BESIDE |= {("ladder", "study.draws", "0"), ("finetune", "evals.options.shots", "0")}
BESIDE |= {(experiment, key, "0") for experiment in PAIRWISE for key in ZEROS}
OWN = ("checkpoint_rung", "checkpoint_ladder")
BESIDE |= {
    (experiment, f"rung.{key}", zero) for experiment in OWN for key in ("loss", "flops") for zero in ("0", "0.0")
}
BESIDE |= {("checkpoint_ladder", "study.draws", "0")}
LADDERS = experiments.LADDERS
LIKE_FINETUNE = ("plan", "plan_preference", "sweep", "curate", "preference", "dynamics")
LIKE_FINETUNE += ("checkpoint_rung", "checkpoint_ladder")
NOT = {
    *(("finetune", f"data.{split}", "0") for split in ("train", "test")),  # of a task without end
    ("finetune", "data.heldout", "0"),  # the threshold is from there
    ("finetune", "model.path", "'x'"),  # and has a base phase
    *((experiment, "train.epochs", "()") for experiment in ("finetune", *PAIRWISE)),
    ("dynamics", "preference.gate", "0"),  # of a member it is not a whole number
    *((experiment, "on_policy.temperature", zero) for experiment in PAIRWISE for zero in ("0", "0.0")),
    *((experiment, "sft.epochs", "()") for experiment in PAIRWISE),
    ("finetune", "evals.test_accuracy.skip_settled", "True"),
    ("finetune", "evals.heldout_likelihood.alone", "True"),  # the threshold is of targets with their prompts
    *(("evaluate", key, "''") for key in ("data.path", "model.path")),
    ("grade", "data.path", "''"),
    *((experiment, "data.grader", "'x'") for experiment in ("finetune", "evaluate")),
    *((experiment, f"data.{key}", "'x'") for experiment in ("finetune", "evaluate") for key in ("prompt", "target")),
    *((experiment, f"{phase}.steps", "0") for experiment in LADDERS for phase in ("pretrain", "finetune")),
    *((experiment, "rung.texts", "''") for experiment in OWN),  # without a loss either
    *(("curate", f"study.{key}", "'x'") for key in ("pool", "url", "model")),  # without a source that reads it
}


@pytest.mark.parametrize("experiment", keys.TABLES)
def test_wrong_values_are_refused_by_the_name_of_the_key(experiment):
    config, table = CONFIGS[experiment], keys.table_of(CONFIGS[experiment])
    if experiment in LIKE_FINETUNE:  # but for some keys
        table = {key: entry for key, entry in keys.TABLES[experiment].items() if entry != keys.FINETUNE.get(key)}
    for key in table:
        for label, value in WRONG.items():
            message = refusal(changed(config, {key: value}))
            case = experiment, key, label
            allowed = (key.rsplit(".", 1)[-1] in ALLOWED.get(label, ()) or case in BESIDE) and case not in NOT
            assert (message is None) == allowed, (case, message)
            if message:
                assert key.rsplit(".", 1)[-1] in message, (case, message)
                assert len(message) < 600 and "\n" not in message


@pytest.mark.parametrize(
    "experiment, changes, words",
    [
        ("finetune", {"optimizer.b1": 2}, ["optimizer.b1=2", "[0, 0.999999]"]),
        ("finetune", {"optimizer.b2": 1.0}, ["optimizer.b2=1.0"]),
        ("finetune", {"data.buckets": (-5, 96)}, ["data.buckets=(-5, 96)"]),
        ("finetune", {"data.buckets": (96, 72)}, ["data.buckets=(96, 72)", "increasing"]),
        ("finetune", {"data.buckets": (72, 128)}, ["data.buckets=(72, 128)", "data.context=96"]),
        ("finetune", {"threshold.quantile": 1.0}, ["threshold.quantile=1.0"]),
        ("finetune", {"evals.train_accuracy.top_p": 1.5}, ["evals.train_accuracy.top_p=1.5"]),
        ("finetune", {"evals.train_accuracy.temperature": 1e-300}, ["evals.train_accuracy.temperature=1e-300"]),
        ("finetune", {"train.micro_batches": 3}, ["train.micro_batches=3", "train.batch=8"]),
        ("finetune", {"train.packed_tokens": (96, 64)}, ["train.packed_tokens=(96, 64)", "increasing"]),
        ("finetune", {"train.packed_tokens": (64, 97)}, ["train.packed_tokens", "97", "data.context=96"]),
        ("preference", {"train.packed_tokens": (193,)}, ["train.packed_tokens", "193", "2 responses", "data.context="]),
        ("finetune", {"evals.variance.micro_batches": 16}, ["evals.variance.micro_batches=16"]),
        ("finetune", {"mesh.tensor": -1}, ["mesh", "at most one may be -1"]),
        ("finetune", {"model.path": "folder"}, ["base.steps=12", "model.path"]),
        ("finetune", {"lora.rank": 2, "lora.targets": ()}, ["lora.targets=()", "at least one"]),
        ("finetune", {"lora.rank": 2, "lora.targets": 2 * ("q_proj",)}, ["lora.targets", "once"]),
        ("finetune", {"lora.targets": ("q",)}, ["lora.targets=('q',)", "'q_proj'"]),
        ("finetune", {"threshold.rule": "given"}, ["threshold.perplexity=0.0"]),
        ("finetune", {"threshold.split": "test"}, ["threshold.split='test'", "heldout, train"]),
        ("finetune", {"data.heldout": 49}, ["data.heldout", "50", "49"]),
        ("finetune", {"data.train": 0}, ["data.train=0", "no end"]),
        ("finetune", {"data.heldout": 0}, ["evals.heldout_likelihood.split", "data.heldout=0"]),
        ("finetune", {"evals.test_accuracy.skip_settled": True}, ["skip_settled", "split 'train' alone"]),
        ("finetune", {"train.lr": 1}, ["no key train.lr"]),
        ("finetune", {"train.batches": 1}, ["no key train.batches", "train.batch?"]),
        ("finetune", {"train": None}, ["train=None", "learning_rate"]),
        ("finetune", {"train": {}}, ["train={}", "learning_rate"]),
        ("finetune", {"evals": None}, ["evals=None"]),
        ("finetune", {"evals.distance": {}}, ["evals.distance.type=None"]),
        ("finetune", {"evals.distance": 3}, ["evals.distance=3"]),
        ("finetune", {"evals.distance.batch": 3}, ["no key evals.distance.batch"]),
        ("finetune", {"evals.a/b": defaults.evaluator("distance", "train", ())}, ["evals='a/b'"]),
        ("finetune", {"model.preset": "llama_tinny"}, ["'llama_tinny'", "did you mean 'llama_tiny'"]),
        ("plan", {"plan.topology": "x"}, ["topology='x'", "v5e:4x4"]),
        ("finetune", {"data.grader": "numbr"}, ["data.grader='numbr'", "number"]),
        ("finetune", {"data.grader": "none"}, ["evals.", "data.grader='none'"]),
        ("finetune", {"data.prompt": "{ask}"}, ["data.target=''", "go together"]),
        ("evaluate", {"data.grader": "number"}, ["data.grader='number'", "sampling.samples=0"]),
        ("plan", {"data.task": "arithmetic"}, ["data.task='arithmetic'"]),
        ("evaluate", {"data.task": "math"}, ["data.task='math'", "sampling.samples=0"]),
        ("analyze", {"threshold.rule": "given"}, ["threshold.perplexity=0.0"]),
        ("sweep", {"study.members": (("a", (("train.epochs", 0),), ()),)}, ["study.members, a:", "train.epochs=0"]),
        ("sweep", {"study.members": (("a", (("train.epoch", 1),), ()),)}, ["study.members, a:", "epoch"]),
        ("sweep", {"study.members": (("a", (), ("b",)), ("b", (), ()))}, ["study.members", "a needs 'b'"]),
        ("sweep", {"study.member": "slwo"}, ["study.member='slwo'", "did you mean 'slow'"]),
        ("sweep", {"data.buckets": (128,)}, ["study.members, slow:", "data.buckets=(128,)"]),
        ("sweep", {"study.members": (("a", (), ()), ("a", (), ()))}, ["study.members", "a name of its own"]),
        ("sweep", {"study.members": (("../a", (), ()),)}, ["study.members", "../a"]),
        ("curate", {"study.members": (("iid-8", (), ()),)}, ["study.members", "'iid-8'", "base-seed0"]),
        ("curate", {"study.members": (("iid+8-seed0", (), ()),)}, ["iid+8-seed0 needs one member of its seed"]),
        ("preference", {"data.task": "preferences", "on_policy.every": 2}, ["on_policy.every=2", "data.grader"]),
        ("preference", {"preference.gate": 1.0}, ["preference.gate=1.0", "[0, 1)"]),
        ("curate", {"study.source": "file"}, ["study.pool=''", "study.source=file"]),
        ("curate", {"evals.train_alone.alone": False}, ["'ifd' needs", "alone=True"]),
        ("rungs", {"planted": (1.0, 2.0)}, ["planted=(1.0, 2.0)", "five"]),
        ("rungs", {"pretrain.first": 13}, ["pretrain.first=13", "12"]),
        ("rungs", {"model.width": 20}, ["model.width=20", "8"]),
        ("rungs", {"finetune.looks": 4}, ["finetune.looks=4"]),
        ("rungs", {"finetune.amounts": (16, 65)}, ["finetune.amounts=(16, 65)", "64 examples"]),
        ("rungs", {"finetune.amounts": (2, 16)}, ["finetune.amounts=(2, 16)", "evaluation.shots=2"]),
        ("rungs", {"evaluation.dev": 17}, ["evaluation.dev=17", "64 questions"]),
        (
            "ladder",
            {"study.members": (("a", (), ()), ("b", (), ()), ("c", (), ("b",)))},
            ["c is predicted", "'a', 'b'"],
        ),
        ("ladder", {"study.mixes": ("a", "b")}, ["study.mixes=('a', 'b')", "fit is of none", "MIX.NAME"]),
        ("ladder", {"study.mixes": ("a",), "study.members": (("a.x", (), ()),)}, ["study.mixes=('a',)", "two or more"]),
        (
            "ladder",
            {
                "study.mixes": ("a", "b"),
                "study.members": (("a.x", (("world.zipf", 2.0),), ()), ("b.x", (("world.zipf", 1.0),), ())),
            },
            ["study.mixes", "world.asked alone"],
        ),
        ("curate", {"data.task": "arithmetic"}, ["study.source='generator'", "'arithmetic'"]),
        (
            "curate",
            {"study.source": "endpoint", "study.url": "file:///etc", "study.model": "m", "data.task": "gsm8k"},
            ["study.url='file:///etc'", "https://"],
        ),
        ("finetune", {"evals.train_accuracy.opening": "o" * 100_000}, ["evals.train_accuracy.opening", "200"]),
        ("finetune", {"evals.probe.response": "r" * 100_000}, ["evals.probe.response", "100"]),
        ("plan", {"plan.topology": f"v5e:{'9' * 5000}x4"}, ["topology='v5e:999", "v5e:4x4"]),
    ],
)
def test_what_cannot_work_together_is_refused(experiment, changes, words):
    message = refusal(changed(CONFIGS[experiment], changes)) or "accepted"
    assert [word for word in words if word not in message] == [], message


def test_a_key_that_is_missing_is_named():
    for key in ("train.batch", "evals.train_accuracy.split", "cache"):
        config = changed(CONFIGS["finetune"], {})
        *groups, last = key.split(".")
        del functools.reduce(ConfigDict.__getitem__, groups, config)[last]
        assert f"{key} is missing" in refusal(config)


def test_what_is_no_config_is_refused():
    for config in (3, None, {}, {"experiment": "finetune"}):
        assert "ConfigDict" in refusal(config)
    assert "config.experiment" in refusal(ConfigDict())


def test_configs_and_mistakes_do_without_jax():
    """One process looks at every config, and its last command is refused; what it had imported by then is printed."""
    program = f"""
import sys
from premem_jax import config, keys, limits, main, together
for name in {[f"{file.parent.relative_to(ROOT)}.{file.stem}".replace("/", ".") for file in FILES]}:
    __import__(name)
sys.argv = ["main", "--config=configs/quickstart.py", "--config.optimizer.b1=2"]
try:
    main.cli()
except SystemExit as end:
    heavy = "jax jaxlib flax optax orbax grain tensorflow sentencepiece pyarrow".split()
    print(end.code, [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "2 []\n", done.stderr
    assert done.stderr.startswith("error: optimizer.b1=2.0: must be a number in [0, 0.999999]")


# ---- What data and mesh decide, before anything is compiled ----------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"base.batch": 12}, ["base.batch = 12", "8 parts"]),
        ({"evals.test_accuracy.batch": 12}, ["evals.test_accuracy.batch = 12", "8 parts"]),
        ({"mesh.decode_tensor": 3}, ["mesh.decode_tensor=3", "8 device"]),
        ({"data.heldout": 52, "data.context": 76, "data.drop_long": True}, ["at least 50 examples in 'heldout'"]),
        ({"tokenizer.kind": "bpe", "tokenizer.vocab_size": 100}, ["tokenizer.vocab_size=100"]),
        ({"model.vocab_chunks": 7}, ["model.vocab_chunks=7", "268"]),
    ],
)
def test_what_the_data_or_the_mesh_cannot_give_is_refused_before_anything_is_compiled(changes, words, tmp_path, caplog):
    config = changed(config_of(ROOT / "tests/configs/tiny.py"), {"cache": str(tmp_path / "cache")} | changes)
    with pytest.raises(UserError) as error, jax.log_compiles(), caplog.at_level("WARNING"):
        finetune.run(config, tmp_path / "run")
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert [record.message for record in caplog.records if "ompil" in record.message] == []


# ---- What looks odd and is valid -------------------------------------------------------------------------------------

SAMPLING = dict(batch=8, samples=1, max_new_tokens=4, first_round=4)


def small(evals: dict, changes: dict) -> ConfigDict:
    config = config_of(ROOT / "tests/configs/tiny.py")
    config.evals = evals
    return changed(config, {"data.train": 8, "data.test": 8, "train.epochs": 2} | changes)


def finished(config: ConfigDict, folder: Path):
    """The trace and the metrics of a run, all finite."""
    config.cache = str(folder / "cache")
    summary = finetune.run(config, folder / "run")
    assert all(math.isfinite(value) for value in summary.values() if isinstance(value, float))
    trace = read_trace(folder / "run" / "trace")
    assert all(math.isfinite(x) for split in trace.splits.values() for x in split.nll.flat if split.nll.any())
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows
    return trace, [row for row in rows if "loss" in row]


def test_zeros_end_as_documented(tmp_path):
    """Nothing moves the weights, nothing is held out or kept, and the likeliest token is taken."""
    evals = dict(
        likelihood=defaults.evaluator("likelihood", "train", (0, 0.5), batch=8),
        accuracy=defaults.evaluator("accuracy", "train", (), **SAMPLING, temperature=0.0, keep_texts=0),
    )
    rates = {"train.learning_rate": 0.0, "base.steps": 0, "train.warmup_steps": 0, "base.learning_rate": 0.0}
    optimizer = {f"optimizer.{key}": 0.0 for key in ("b1", "b2", "weight_decay")}
    given = {"threshold.rule": "given", "threshold.perplexity": 1.5, "data.heldout": 0, "data.buckets": ()}
    trace, rows = finished(small(evals, rates | optimizer | given), tmp_path)
    nll_ME = trace.split("train").nll
    assert len(nll_ME) == 2 and (nll_ME == nll_ME[0]).all()
    assert {row["learning_rate"] for row in rows} == {0}


@pytest.mark.slow
def test_the_ends_of_ranges_end_as_documented(tmp_path):
    """The warm-up is longer than the run, so its rates stay small; rare checkpoints and rows are those of the end."""
    far = {
        f"evals.accuracy.{key}": value for key, value in dict(temperature=1e6, top_p=1e-6, first_round=2**20).items()
    }
    evals = dict(
        likelihood=defaults.evaluator("likelihood", "train", (0, 1e6), batch=8),
        accuracy=defaults.evaluator("accuracy", "train", (1e-9,), **SAMPLING),
    )
    changes = {
        **{"seed": 2**32 - 1, "data.seed": 2**32 - 1, "log_every": 10**9, "checkpoint.every": 10**9},
        **{"base.steps": 1, "base.prompt_weight": 1, "base.warmup_steps": 10**9, "train.warmup_steps": 10**9},
        **{"optimizer.b1": 0.999999, "optimizer.b2": 0.999999, "optimizer.eps": 1e-30, "optimizer.clip_norm": 1e30},
        **{"optimizer.weight_decay": 1000, "train.length_window": 10**6, "data.buckets": (96,)},
        **{"threshold.rule": "given", "threshold.perplexity": 1e30, "data.heldout": 0},
    }
    trace, rows = finished(small(evals, changes | far), tmp_path)
    assert [row["step"] for row in rows] == [2] and 0 < rows[0]["learning_rate"] <= 1e-3 / 10**9
    assert trace.steps.tolist() == [0, 2]
