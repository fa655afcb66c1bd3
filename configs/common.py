"""Settings shared by the configs here; nothing to run. `premem_jax/config.py` has every key and its default."""

from ml_collections import ConfigDict

from premem_jax import config
from premem_jax.config import evaluator
from premem_jax.errors import UserError
from premem_jax.tasks import task as tasks

PARTS = {"full": 1, "half": 2, "quarter": 4}  # of the training set


def paper(arg: str | None, model: str, task: str, lr: float) -> ConfigDict:
    """The settings shared by all runs of Kang et al. (arXiv 2411.07681, section 4 and appendix).

    Their runs differ in the options of `arg`: lr, epochs and size (full, half or quarter of the training set). Theirs
    are the optimizer, schedule, batch sizes, epochs, sampling and the learning rates of Llama3. Ours, because theirs
    are unknown or do not apply, are the settings of Gemma2, the mesh, and the threshold, which comes from the
    likelihood of the test solutions.
    """
    options = config.parse_arg(arg, lr=lr, epochs=6, size="full")
    if not 1 <= options.epochs <= 10**5:  # an evaluation is planned for each of them
        raise UserError(f"config option epochs={options.epochs}: must be a whole number from 1 to {10**5}")
    c = config.finetune()
    c.compute_dtype = "bfloat16"
    c.model.update(preset=model, remat="full", vocab_chunks=8)
    c.data.update(task=task, train=part_of(task, options.size))
    c.train.update(epochs=options.epochs, learning_rate=options.lr, warmup_steps=20)
    c.optimizer.update(b1=0.9, b2=0.999, eps=1e-8, clip_norm=2.0)
    c.threshold.split = "test"
    c.checkpoint.every = 58
    return c


def part_of(task: str, size: str) -> int:
    """Training examples of the full, half or quarter training set; 0 takes all there are."""
    if size not in PARTS:
        raise UserError(f"config option size={size!r}: choose {', '.join(PARTS)}")
    return 0 if size == "full" else tasks.find(task).SIZES[0] // PARTS[size]


def every_epoch(epochs: int, scoring: dict, **sampling) -> dict[str, ConfigDict]:
    """Likelihood and accuracy of the training and the test split after each epoch."""
    at = tuple(range(1, epochs + 1))
    return dict(
        train_likelihood=evaluator("likelihood", "train", at, **scoring),
        test_likelihood=evaluator("likelihood", "test", at, **scoring),
        train_accuracy=evaluator("accuracy", "train", at, drafted=True, **sampling),
        test_accuracy=evaluator("accuracy", "test", at, **sampling),
    )


def paper_sweep(base: ConfigDict, full: list[tuple[float, int]], parts: list[tuple[float, int, str]]) -> ConfigDict:
    """One group of the paper's runs: (learning rate, epochs) on the full set, and (..., size) on parts of it."""
    keys = "train.learning_rate", "train.epochs", "data.train"
    runs = [*((rate, epochs, "full") for rate, epochs in full), *parts]
    settings = {
        f"lr-{rate:g}-epochs-{epochs}-{size}": dict(
            zip(keys, (rate, epochs, part_of(base.data.task, size)), strict=True)
        )
        for rate, epochs, size in runs
    }
    return config.sweep(base, settings)


def arithmetic() -> ConfigDict:
    """A small Llama on the arithmetic task: a base phase on its texts, cached, then a finetune on word problems."""
    c = config.finetune()
    c.data.update(task="arithmetic", train=256, heldout=1024, test=192, context=96, buckets=(72, 88))
    c.tokenizer.update(kind="word", vocab_size=512)
    c.model.preset = "llama_tiny"
    c.base.update(steps=600, learning_rate=6e-3)
    c.train.update(epochs=16, batch=16, learning_rate=3e-3, warmup_steps=10)
    c.optimizer.update(b2=0.98, weight_decay=0.0, clip_norm=1.0)
    early = (0, 1, 2, 4, 7, 11)
    sampling = dict(batch=32, max_new_tokens=44)
    c.evals = dict(
        train_likelihood=evaluator("likelihood", "train", early, batch=32),
        heldout_likelihood=evaluator("likelihood", "heldout", early, batch=32),
        train_accuracy=evaluator("accuracy", "train", early, samples=10, **sampling),
        test_accuracy=evaluator("accuracy", "test", early, samples=5, **sampling),
    )
    return c


def probes(split: str, epochs: tuple[float, ...], **options) -> dict[str, ConfigDict]:
    """Log-likelihoods of every type of response that can be made from the data, and where the mass goes along y⁺."""
    types = ("chosen", "rejected", "other", "permuted", "random")
    each = {f"{split}_{name}": evaluator("probe", split, epochs, response=name, **options) for name in types}
    return each | {f"{split}_squeezing": evaluator("squeezing", split, epochs, **options)}


def arithmetic_pairs() -> ConfigDict:
    """A small Llama on pairs of a right and a wrong solution of the same arithmetic problem, for two cores."""
    c = config.preference()
    like = arithmetic()
    for group in ("tokenizer", "model", "base", "optimizer"):
        c[group].update(like[group])
    c.data.update(task="arithmetic", train=256, test=128, context=96, buckets=(72, 88))
    c.train.update(epochs=4, batch=16, learning_rate=3e-4, warmup_steps=10)
    c.sft.update(epochs=4, learning_rate=2e-3, warmup_steps=10)
    epochs = (0, 1, 2, 4, 4.5, 5, 6, 7)
    c.evals = probes("train", epochs, prompts=64, batch=64)
    c.evals["test_accuracy"] = evaluator("accuracy", "test", (0, 4, 6), batch=32, samples=4, max_new_tokens=44)
    return c
