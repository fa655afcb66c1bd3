"""Configs: the keys every finetune has, and options after the colon of `--config=configs/NAME.py:key=value`."""

import difflib

from ml_collections import ConfigDict

from premem_jax.errors import UserError


def finetune() -> ConfigDict:
    """A finetune with the settings of Kang et al. (arXiv 2411.07681) for GSM8K, as far as they are known."""
    c = ConfigDict()
    c.experiment = "finetune"
    c.seed = 0
    c.cache = ""  # base models, compiled programs and prepared datasets, shared by runs; no path: beside the workdir
    c.log_every = 10  # steps between rows of metrics.jsonl
    c.compute_dtype = "float32"

    c.data = ConfigDict(
        dict(task="gsm8k", path="", train=0, heldout=0, test=0, seed=0, context=1024, drop_long=False, buckets=())
    )
    c.tokenizer = ConfigDict(dict(path="", kind="bpe", vocab_size=4096))  # no path: trained on the task's texts
    # With a path, a Hugging Face folder gives shape, weights and, unless tokenizer.path is set, the tokenizer.
    c.model = ConfigDict(dict(preset="llama_small", path="", remat="none", vocab_chunks=1, attention="auto"))
    c.base = ConfigDict(dict(steps=0, batch=48, learning_rate=3e-3, warmup_steps=50, prompt_weight=0.3))
    c.train = ConfigDict(
        dict(epochs=3, batch=128, micro_batches=1, length_window=1, learning_rate=2e-5, warmup_steps=20)
    )
    c.optimizer = ConfigDict(dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=2.0))
    c.evals = ConfigDict()
    c.threshold = ConfigDict(dict(rule="heldout_quantile", quantile=0.01, split="heldout", perplexity=0.0))
    c.checkpoint = ConfigDict(dict(every=100, keep=2, export=False, export_dtype="float32"))
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, decode_tensor=0))
    c.profile = ConfigDict(dict(start=0, steps=0))  # JAX's profiler over `steps` updates after update `start`
    return c


def arithmetic() -> ConfigDict:
    """A small Llama on the arithmetic task: a base phase on its texts, cached, then a finetune on word problems."""
    c = finetune()
    c.data.update(task="arithmetic", train=256, heldout=1024, test=192, context=96, buckets=(72, 88))
    c.tokenizer.update(kind="word", vocab_size=512)
    c.model.preset = "llama_tiny"
    c.base.update(steps=600, learning_rate=6e-3)
    c.train.update(epochs=16, batch=16, learning_rate=3e-3, warmup_steps=10)
    c.optimizer.update(b2=0.98, weight_decay=0.0, clip_norm=1.0)
    early = (0, 1, 2, 4, 7, 11)
    sampling = dict(batch=32, max_new_tokens=44)
    c.evals = dict(
        train_likelihood=likelihood("train", early, batch=32),
        heldout_likelihood=likelihood("heldout", early, batch=32),
        train_accuracy=accuracy("train", early, samples=10, **sampling),
        test_accuracy=accuracy("test", early, samples=5, **sampling),
    )
    return c


# Learning rates of the runs of Kang et al. on the full training sets, and the one of those on parts of them.
RATES = {"llama3_8b": (2e-4, 5e-5, 5e-7), "gemma2_9b": (5e-4, 5e-5, 5e-6, 5e-7)}
MIDDLE_RATE = {"llama3_8b": 2e-5, "gemma2_9b": 5e-5}
PARTS = {"full": 1, "half": 2, "quarter": 4}
# Examples of the published splits, train and test.
EXAMPLES = {"gsm8k": (7473, 1319), "math": (7500, 5000)}


def paper(model: str, task: str, arg: str | None) -> ConfigDict:
    """One run of the study of Kang et al. (arXiv 2411.07681): `model` finetuned on GSM8K or MATH.

    `arg` may set lr, epochs and size (full, half or quarter of the training set). Theirs are the optimizer, schedule,
    batch sizes, epochs, sampling and the Llama3 learning rates. Ours, since theirs are unknown or do not carry over:
    the settings of Gemma2, the layout, and the threshold, which is read from the likelihood of the test solutions.
    """
    if task not in EXAMPLES:
        raise UserError(f"config option task={task!r}: choose {', '.join(EXAMPLES)}")
    options = parse_arg(arg, lr=MIDDLE_RATE.get(model, 2e-5), epochs=6, size="full")
    if options.size not in PARTS:
        raise UserError(f"config option size={options.size!r}: choose {', '.join(PARTS)}")
    c = finetune()
    c.compute_dtype = "bfloat16"
    c.model.update(preset=model, remat="full", vocab_chunks=8)
    math = task == "math"
    c.data.update(task=task, train=part_of(task, options.size))
    # Theirs are cut at 1,024 tokens. A cut solution has no answer, so the 1 % of MATH that is longer is left out.
    buckets = (256, 512, 768, 1024) if math else (256, 384, 512, 640)
    c.data.update(context=buckets[-1], buckets=buckets, drop_long=math)
    c.train.update(epochs=options.epochs, learning_rate=options.lr, batch=24 if math else 128)
    c.mesh.update(dict(fsdp=8, tensor=-1) if math else dict(fsdp=-1), decode_tensor=8)
    c.optimizer.weight_decay = 0.0 if math else 0.01
    epochs = tuple(range(1, options.epochs + 1))
    sampling = dict(max_new_tokens=1024 if math else 512, top_p=1.0 if math else 0.95)
    c.evals = dict(
        train_likelihood=likelihood("train", epochs),
        test_likelihood=likelihood("test", epochs),
        train_accuracy=accuracy("train", epochs, **sampling),
        test_accuracy=accuracy("test", epochs, **sampling),
    )
    c.threshold.split = "test"
    c.checkpoint.every = 58
    return c


def evaluate() -> ConfigDict:
    """An evaluation of a Hugging Face folder on the rows of a file, without training."""
    c, like = ConfigDict(), finetune()
    c.experiment = "evaluate"
    c.seed = 0
    c.cache = like.cache
    c.compute_dtype = "bfloat16"  # also of the weights; float32 for exact comparisons
    c.chunk = 1024  # rows between files that a killed evaluation continues from

    c.data = ConfigDict(dict(path="", task="", context=8192, buckets=()))  # a task has its answers graded
    c.tokenizer = ConfigDict(dict(path=""))
    c.model = like.model
    del c.model["preset"]
    c.likelihood = likelihood("", ())
    c.sampling = accuracy("", (), samples=0)
    for options in c.likelihood, c.sampling:
        for key in ("type", "split", "epochs"):
            del options[key]
    for key in ("keep_texts", "skip_settled", "opening", "reworded"):
        del c.sampling[key]
    c.mesh = like.mesh
    return c


def part_of(task: str, size: str) -> int:
    """Training examples of the full, half or quarter training set; 0 takes all there are."""
    return 0 if size == "full" else EXAMPLES[task][0] // PARTS[size]


def paper_sweep(model: str, task: str, arg: str | None) -> ConfigDict:
    """All runs of one group of Kang et al.: a model, a task, every learning rate, epochs and size that they trained."""
    parse_arg(arg)
    runs = [(rate, epochs, "full") for rate in RATES[model] for epochs in (1, 3, 6)]
    runs += [(MIDDLE_RATE[model], 6, "half"), (MIDDLE_RATE[model], 12, "quarter")]
    if (model, task) == ("llama3_8b", "gsm8k"):
        runs += [(MIDDLE_RATE[model], epochs, "full") for epochs in (3, 6)]
    base = paper(model, task, "epochs=12")  # evaluated after every epoch that a run has
    keys = "train.learning_rate", "train.epochs", "data.train"
    settings = {
        f"lr-{rate:g}-epochs-{epochs}-{size}": dict(zip(keys, (rate, epochs, part_of(task, size)), strict=True))
        for rate, epochs, size in runs
    }
    return sweep(base, settings)


def sweep(base: ConfigDict, runs) -> ConfigDict:
    """Finetunes like `base` with the settings of each of `runs`: name → {key: value}."""
    base.experiment = "sweep"
    base.sweep = ConfigDict(dict(runs=tuple((name, tuple(changes.items())) for name, changes in runs.items())))
    return base


def analyze() -> ConfigDict:
    """A study of finished runs, see `experiments/analyze.py`."""
    c = ConfigDict()
    c.experiment = "analyze"
    c.seed = 0
    c.cache = ""
    c.traces = ""  # folder or file of the runs
    # published (by the runs' authors; the held-out quantile for runs that have none), heldout_quantile, given
    c.threshold = ConfigDict(dict(rule="published", quantile=0.01, perplexity=0.0))
    c.release = ConfigDict(dict(train_samples="fewest", test_samples="most", subset="repaired"))
    c.draws = 1000  # bootstrap draws of runs, and of held-out examples
    return c


def likelihood(split: str, epochs: tuple[float, ...], **options) -> ConfigDict:
    """An evaluator of target likelihood on `split`, after each of `epochs` and at the end."""
    return ConfigDict(dict(type="likelihood", split=split, epochs=epochs, batch=64) | options)


def accuracy(split: str, epochs: tuple[float, ...], **options) -> ConfigDict:
    """An evaluator of sampled answers on `split`, after each of `epochs` and at the end; the paper's 5 at 0.8."""
    sampling = dict(batch=64, samples=5, max_new_tokens=512, first_round=128, temperature=0.8, top_p=1.0)
    # first_round: tokens after which what is not finished goes on in batches of its own; then after twice as many ...
    # skip_settled: training examples whose pre-memorization accuracy is 0 whatever they are answered are not sampled;
    # the metric is the same, the train accuracy is no longer measured. The threshold must be given.
    # opening: a text such as " First" that every response must begin with; reworded: the question in other words,
    # where the task has them. The verdicts are a split of their own.
    kept = dict(keep_texts=64, skip_settled=False, opening="", reworded=False)
    return ConfigDict(dict(type="accuracy", split=split, epochs=epochs) | kept | sampling | options)


def gradient_variance(epochs: tuple[float, ...], **options) -> ConfigDict:
    """An evaluator of the variance of `batches` gradients of `batch` training examples each; the paper's 5 and 128."""
    sizes = dict(batch=128, batches=5, micro_batches=1)
    return ConfigDict(dict(type="gradient_variance", split="train", epochs=epochs) | sizes | options)


def distance(epochs: tuple[float, ...]) -> ConfigDict:
    """An evaluator of how far the weights are from those that the finetune began with."""
    return ConfigDict(dict(type="distance", split="train", epochs=epochs))


def confidence(epochs: tuple[float, ...], **options) -> ConfigDict:
    """An evaluator of how likely each training example's greedy response is."""
    return ConfigDict(dict(type="confidence", split="train", epochs=epochs, batch=64, max_new_tokens=512) | options)


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
