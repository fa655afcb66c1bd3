"""Configs: the keys every finetune has, and options after the colon of `--config=configs/NAME.py:key=value`."""

import difflib

from ml_collections import ConfigDict

from premem_jax.errors import UserError


def finetune() -> ConfigDict:
    """A finetune with the settings of Kang et al. (arXiv 2411.07681) for GSM8K, as far as they are known."""
    c = ConfigDict()
    c.experiment = "finetune"
    c.seed = 0
    c.cache = "runs/cache"  # base models, compiled programs and prepared datasets, shared by runs
    c.log_every = 10  # steps between rows of metrics.jsonl
    c.compute_dtype = "float32"

    c.data = ConfigDict(
        dict(task="gsm8k", path="", train=0, heldout=0, test=0, seed=0, context=1024, drop_long=False, buckets=())
    )
    c.tokenizer = ConfigDict(dict(path="", kind="bpe", vocab_size=4096))  # no path: trained on the task's texts
    c.model = ConfigDict(dict(preset="llama_small", remat=False))
    c.base = ConfigDict(dict(steps=0, batch=48, learning_rate=3e-3, warmup_steps=50, prompt_weight=0.3))
    c.train = ConfigDict(
        dict(epochs=3, batch=128, micro_batches=1, length_window=1, learning_rate=2e-5, warmup_steps=20)
    )
    c.optimizer = ConfigDict(dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=2.0))
    c.evals = ConfigDict()
    c.threshold = ConfigDict(dict(rule="heldout_quantile", quantile=0.01, split="heldout", perplexity=0.0))
    c.checkpoint = ConfigDict(dict(every=100, keep=2))
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))
    return c


def analyze() -> ConfigDict:
    """A study of finished runs, see `experiments/analyze.py`."""
    c = ConfigDict()
    c.experiment = "analyze"
    c.seed = 0
    c.cache = "runs/cache"
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
    defaults = dict(batch=64, samples=5, max_new_tokens=512, temperature=0.8, top_p=1.0, keep_texts=8)
    return ConfigDict(dict(type="accuracy", split=split, epochs=epochs) | defaults | options)


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
