"""The tasks a config can name: where their examples come from and what their tokenizer is trained on."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np

from premem_jax import progress
from premem_jax.data import arithmetic
from premem_jax.data.examples import Example
from premem_jax.errors import UserError


class Task(NamedTuple):
    """Examples by split (`train`, `heldout` unless empty, `test`), and the texts a tokenizer is trained on.

    `base_texts(count, seed)` gives plain texts for a base phase, where the task has any.
    """

    splits: dict[str, list[Example]]
    tokenizer_texts: Callable[[], Iterable[str]]
    base_texts: Callable[[int, int], list[Example]] | None = None


def load(name: str, *, path: str, train: int, heldout: int, test: int, seed: int, cache: str) -> Task:
    """The task called `name` with the given numbers of examples; 0 takes all there are (no `heldout`).

    Args:
      path: folder or mirror of the files of a task that has files; empty for their official place.
      cache: folder in which such files are prepared once.

    Raises:
      UserError: an unknown task, or data that cannot be read.
    """
    if name not in TASKS:
        raise UserError(f"data.task={name!r}: there is {', '.join(TASKS)}")
    sizes = {"train": train, "heldout": heldout, "test": test}
    for split, size in sizes.items():
        if size < 0:
            raise UserError(f"data.{split}={size}: a number of examples is not negative")
    task = TASKS[name](path, sizes, seed, cache)
    return task._replace(
        splits={split: examples for split, examples in task.splits.items() if examples or split != "heldout"}
    )


def _arithmetic(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    for split in ("train", "test"):
        if not sizes[split]:
            raise UserError(f"data.{split}=0: the arithmetic task has no end, say how many examples")
    splits = {split: arithmetic.problems(split, size, seed) for split, size in sizes.items()}
    return Task(splits, arithmetic.vocabulary, arithmetic.base_texts)


def _problems(name: str, path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    from premem_jax.data import builders  # TFDS takes a while to import, and other tasks do without

    sources = builders.prepared(name, path, cache)
    progress.say(builders.summary(name, sources))
    train, test = (builders.examples(sources[split]) for split in ("train", "test"))
    order = [train[i] for i in np.random.default_rng(seed).permutation(len(train))]
    used = sizes["train"] or len(train)
    if used + sizes["heldout"] > len(train):
        raise UserError(f"data: {used} train and {sizes['heldout']} heldout examples asked, {name} has {len(train)}")
    shuffled = [test[i] for i in np.random.default_rng(seed).permutation(len(test))]
    splits = {
        "train": order[:used],
        "heldout": order[used : used + sizes["heldout"]],
        "test": shuffled[: sizes["test"] or None],
    }
    splits = {name: sorted(examples, key=lambda e: e.id) for name, examples in splits.items()}
    return Task(splits, lambda: (e.prompt + e.target for e in train))


TASKS = {
    "arithmetic": _arithmetic,
    "gsm8k": partial(_problems, "gsm8k"),
    "math": partial(_problems, "math"),
}

# By which of the rules in `scoring/rules.py` the answers of each task are graded.
RULES = {"arithmetic": "gsm8k", "gsm8k": "gsm8k", "math": "math"}
