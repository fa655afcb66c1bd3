"""The keys of configs, and options after the colon of `--config=configs/NAME.py:key=value`."""

import difflib

from ml_collections import ConfigDict

from premem_jax import evaluators
from premem_jax.errors import UserError
from premem_jax.models.architecture import MATRICES


def finetune() -> ConfigDict:
    """A finetune: every key and its default. Recipes are in `configs/`."""
    c = ConfigDict()
    c.experiment = "finetune"
    c.seed = 0
    c.cache = ""  # base models, compiled programs and prepared datasets, shared by runs; no path: beside the workdir
    c.extend = False
    c.log_every = 10  # steps between rows of metrics.jsonl
    c.trackers = ()  # wandb, mlflow, trackio: beside TensorBoard
    c.compute_dtype = "float32"

    c.data = ConfigDict(
        dict(
            task="gsm8k",
            path="",
            added="",
            train=0,
            heldout=0,
            test=0,
            seed=0,
            context=1024,
            drop_long=False,
            buckets=(),
        )
    )
    # How answers are graded, how own rows are read, and the model's chat template.
    c.data.update(grader="", prompt="", target="", template="auto")
    c.tokenizer = ConfigDict(dict(path="", kind="bpe", vocab_size=4096))  # no path: trained on the task's texts
    # With a path, a Hugging Face folder gives shape, weights and, unless tokenizer.path is set, the tokenizer.
    c.model = ConfigDict(dict(preset="llama_small", path="", remat="none", vocab_chunks=1, attention="auto"))
    c.base = ConfigDict(dict(steps=0, batch=48, learning_rate=3e-3, warmup_steps=50, prompt_weight=0.3))
    c.train = ConfigDict(
        dict(epochs=3, batch=128, micro_batches=1, length_window=1, learning_rate=2e-5, warmup_steps=20)
    )
    c.train.packed_tokens = ()  # without sizes, each example has a row of its own
    c.lora = ConfigDict(dict(rank=0, alpha=32.0, targets=tuple(f"{name}_proj" for name in MATRICES)))  # 0: no adapters
    c.optimizer = ConfigDict(dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=2.0, mean_dtype="float32"))
    c.evals = ConfigDict()
    c.threshold = ConfigDict(dict(rule="heldout_quantile", quantile=0.01, split="heldout", perplexity=0.0))
    c.checkpoint = ConfigDict(dict(every=100, keep=2, export=False, export_dtype="float32"))
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, decode_tensor=0))
    c.profile = ConfigDict(dict(start=0, steps=0))  # JAX's profiler over `steps` updates after update `start`
    return c


def preference() -> ConfigDict:
    """Preference training, with supervised finetuning before it if `sft.epochs` asks for it; DPO by default."""
    c = finetune()
    c.experiment = "preference"
    c.data.update(task="preferences", bad_pairs="refuse")
    del c.data["added"]  # there are no pairs
    del c["extend"]
    c.sft = ConfigDict(dict(epochs=0, answers="chosen", learning_rate=5e-7, warmup_steps=20))
    c.preference = ConfigDict(
        dict(objective="dpo", beta=0.1, label_smoothing=0.0, reference_free=False, delta=1.0, weight=0.1, eta=1.0)
    )
    c.preference.gate = 0.0
    c.on_policy = ConfigDict(dict(every=0, samples=8, temperature=1.0, max_new_tokens=512, batch=64))
    c.influence = ConfigDict(dict(every=0, prompts=8, draws=1))
    c.threshold.rule = "none"
    return c


def evaluate() -> ConfigDict:
    """An evaluation of a Hugging Face folder on the rows of a file, without training."""
    c, like = ConfigDict(), finetune()
    c.experiment = "evaluate"
    c.seed = 0
    c.cache = like.cache
    c.compute_dtype = "bfloat16"  # also of the weights; float32 for exact comparisons
    c.chunk = 1024  # rows between files that a killed evaluation continues from

    # A task, or a grader, has the answers graded.
    c.data = ConfigDict(
        dict(path="", task="", grader="", prompt="", target="", template="auto", context=8192, buckets=())
    )
    c.tokenizer = ConfigDict(dict(path=""))
    c.model = like.model
    del c.model["preset"]
    c.likelihood = evaluators.options("likelihood", {})
    c.sampling = evaluators.options("accuracy", dict(samples=0))
    del c.likelihood["alone"], c.likelihood["packed_tokens"]
    for key in ("keep_texts", "skip_settled", "opening", "reworded", "drafted"):
        del c.sampling[key]
    c.mesh = like.mesh
    return c


def sweep(base: ConfigDict, runs) -> ConfigDict:
    """Finetunes like `base` with the settings of each of `runs`: name → {key: value}."""
    return study("sweep", base, [(name, changes, ()) for name, changes in runs.items()])


def study(experiment: str, base: ConfigDict, members) -> ConfigDict:
    """Many runs like `base` under one folder, of which `experiment` concludes something.

    Args:
      members: name, {key: value} in which it differs, and the names of the earlier members that it is made from.
    """
    base.experiment = experiment
    rows = tuple((name, tuple(changes.items()), tuple(needs)) for name, changes, needs in members)
    base.study = ConfigDict(dict(member="all", members=rows))  # member: the one that a launch makes, or all
    return base


def analyze() -> ConfigDict:
    """A study of finished runs, see `experiments/analyze.py`."""
    c = ConfigDict()
    c.experiment = "analyze"
    c.seed = 0
    c.cache = ""
    c.traces = ""  # folder or file of the runs
    # published (by the runs' authors, who tuned it on test accuracy; the held-out quantile for runs that have none),
    # heldout_quantile (looks at no accuracy), given
    c.threshold = ConfigDict(dict(rule="published", quantile=0.01, perplexity=0.0))
    c.release = ConfigDict(dict(train_samples="fewest", test_samples="most", subset="repaired"))
    c.draws = 1000  # bootstrap draws of runs, and of held-out examples
    return c


def audit() -> ConfigDict:
    """An audit of the examples of finished runs, see `experiments/audit_traces.py`."""
    c = analyze()
    c.experiment = "audit_traces"
    del c["draws"]
    c.select, c.share, c.rows = "", 0.5, ""
    return c


def rungs() -> ConfigDict:
    """One size of model on a ladder of emergence, see `experiments/rungs.py`."""
    c = ConfigDict()
    c.experiment = "rungs"
    c.seed = 0  # also of the facts
    c.cache = ""
    c.log_every = 50
    c.compute_dtype = "float32"
    c.world = ConfigDict(dict(entities=512, relations=16, values=64, zipf=1.0, asked=0.003, prose=0.5))
    c.model = ConfigDict(dict(width=64, layers=3))
    c.pretrain = ConfigDict(
        dict(steps=1600, batch=48, learning_rate=3e-3, warmup_steps=50, first=100, rungs=9, loss_texts=256)
    )
    c.finetune = ConfigDict(
        dict(amounts=(16, 64, 256, 1024, 4096), subsets=2, steps=128, batch=16, learning_rate=4e-4, looks=4)
    )
    c.evaluation = ConfigDict(dict(shots=3, dev=256, questions=1024, batch=256))
    # elbow with a prompt's examples and with the largest amount, alpha, slope, floor; none: accuracies are measured
    c.planted = ()
    c.forecast = ""
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))
    return c


def checkpoint_rung() -> ConfigDict:
    """One of anybody's checkpoints on a ladder of emergence, see `experiments/checkpoint_rung.py`."""
    c = finetune()
    c.experiment = "checkpoint_rung"
    del c["extend"]
    del c.train["epochs"]
    c.train.update(batch=16, learning_rate=1e-5)  # of the trainer of the paper's author
    c.threshold.rule = "none"
    c.data.update(heldout=256)
    c.evals = dict(answers=evaluator("option_likelihood", "test", ()))
    c.rung = ConfigDict(dict(loss=0.0, texts="", flops=0.0))
    c.finetune = ConfigDict(dict(amounts=(16, 64, 256, 1024, 4096), subsets=2, steps=128, looks=4))
    c.evaluation = ConfigDict(dict(shots=5, by=""))
    c.forecast = ""
    return c


def ladder(base: ConfigDict, weak, strong, mixes=None) -> ConfigDict:
    """A ladder of models like `base`: name → {key: value} of those that are finetuned, and of those predicted.

    `base` is of `rungs`, which pretrains them, or of `checkpoint_rung`. `mixes`, name → {key: value}, are compared:
    each has all of these models, called MIX.NAME.
    """
    rung, mixes = {"experiment": base.experiment}, mixes or {}
    of = lambda models: {f"{mix}.{name}": more | own for mix, more in mixes.items() for name, own in models.items()}
    weak, strong = (of(weak), of(strong)) if mixes else (weak, strong)
    members = [(name, rung | changes, ()) for name, changes in weak.items()]
    members += [(name, rung | {"finetune.amounts": ()} | changes, tuple(weak)) for name, changes in strong.items()]
    c = study({"rungs": "ladder", "checkpoint_rung": "checkpoint_ladder"}[base.experiment], base, members)
    c.study.update(form="log_power_law", draws=100, mixes=tuple(mixes))
    return c


def squeezing_toy(*, trials: int, seed: int) -> ConfigDict:
    """The theorem behind the squeezing effect, tried, see `experiments/squeezing_toy.py`."""
    return ConfigDict(dict(experiment="squeezing_toy", cache="", trials=trials, seed=seed))


def evaluator(type: str, split: str, epochs: tuple[float, ...], **options) -> ConfigDict:
    """The evaluator `premem_jax/evaluators/TYPE.py` on `split`, after each of `epochs` and at the end.

    `options` are the keyword arguments of its constructor, which has their defaults.

    Raises:
      UserError: an unknown type or option (the nearest one is suggested).
    """
    return ConfigDict(dict(type=type, split=split, epochs=epochs) | evaluators.options(type, options))


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Options of a config file, `key=value,key=value`, each of the type of its default.

    Raises:
      UserError: an unknown key (the nearest one is suggested) or a value of another type.
    """
    options = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, value = item.partition("=")
        if key not in defaults or not equals:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config option {item!r} is unknown{hint} (there are: {', '.join(defaults) or 'none'})")
        kind = type(defaults[key])
        try:
            options[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError) as error:
            raise UserError(f"config option {item!r}: {key} is of type {kind.__name__}") from error
    return options
