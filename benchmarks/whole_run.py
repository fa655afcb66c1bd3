"""A whole finetune: a model with random weights memorizes examples of GSM8K, scored and sampled on the way.

This module has the common inputs of all contenders: tokenized examples, batches, learning rates, sampling settings.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from premem_jax import config as defaults
from premem_jax.data.pipeline import Tokenized, steps_per_epoch, tokenize
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizer_files import load_or_train
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.evaluators.suite import scheduled_steps
from premem_jax.tasks import task as tasks
from premem_jax.training.optimizer import learning_rate

EPOCHS = (2, 4, 6, 8, 10, 12)  # after each of them every example is evaluated
THRESHOLD = 1.5  # perplexity; nothing is held out to read it from


def write(folder: Path, data: str, examples: int, vocabulary: int) -> None:
    """Trains a tokenizer on GSM8K; writes it and the settings of the run into `folder`."""
    task = tasks.load("gsm8k", path=data, train=examples, heldout=0, test=1, seed=0, cache=str(folder / "cache"))
    load_or_train(folder / "tokenizer.model", task.tokenizer_texts(), path="", kind="bpe", vocab_size=vocabulary)
    (folder / "finetune.json").write_text(json.dumps(dict(data=data, examples=examples)))


def config(folder: Path) -> ConfigDict:
    """The config of a finetune of the model in `folder`."""
    given = json.loads((folder / "finetune.json").read_text())
    c = defaults.finetune()
    c.cache = str(folder / "cache")
    c.model.path, c.tokenizer.path = str(folder), str(folder / "tokenizer.model")
    c.mesh.update(data=-1, fsdp=1)  # on a CPU, a device for each core is worth it: JAX_NUM_CPU_DEVICES
    c.data.update(path=given["data"], train=given["examples"], test=1, context=640, buckets=(160, 224, 320, 448, 640))
    c.train.update(epochs=EPOCHS[-1], batch=8, micro_batches=2, length_window=8, learning_rate=4e-3)
    c.optimizer.update(b2=0.98, weight_decay=0.0, clip_norm=1.0)
    c.evals = dict(
        nll=defaults.evaluator("likelihood", "train", EPOCHS, batch=32),
        accuracy=defaults.evaluator(
            "accuracy", "train", EPOCHS, batch=16, max_new_tokens=320, first_round=192, keep_texts=0
        ),
    )
    c.threshold.update(rule="given", perplexity=THRESHOLD)
    c.checkpoint.every = 10**6  # one at the end
    return c


def examples(c: ConfigDict) -> tuple[Tokenized, Tokenizer]:
    """The training examples."""
    task = tasks.load("gsm8k", **{k: c.data[k] for k in ("path", "train", "heldout", "test", "seed")}, cache=c.cache)
    tokenizer = load_or_train(Path(c.tokenizer.path), (), **c.tokenizer.to_dict())
    return tokenize("train", task.splits["train"], tokenizer, context=c.data.context, drop_long=False), tokenizer


def updates(c: ConfigDict, data: Tokenized):
    """(step, batch, learning rate) of the whole training; `evaluated(c, data)` names the steps to evaluate after."""
    steps = c.train.epochs * steps_per_epoch(len(data), c.train.batch)
    schedule = dict(peak=c.train.learning_rate, warmup_steps=c.train.warmup_steps, steps=steps)
    batches = train_batches(
        data,
        0,
        steps,
        batch=c.train.batch,
        seed=c.seed,
        buckets=c.data.buckets,
        window=c.train.length_window,
    )
    for step, (_, batch) in enumerate(batches):
        yield step + 1, batch, learning_rate(step, **schedule)


def evaluated(c: ConfigDict, data: Tokenized) -> tuple[int, ...]:
    per_epoch = steps_per_epoch(len(data), c.train.batch)
    return scheduled_steps(EPOCHS, per_epoch, c.train.epochs * per_epoch)
