"""What every evaluator is given, and what it gives."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.data.pipeline import Tokenized
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.models.decoder import Model
from premem_jax.programs import Clock


class Context(NamedTuple):
    """One split, the rules by which its answers are graded, and the means to run a model on it."""

    split: str
    data: Tokenized
    rules: str
    tokenizer: Tokenizer
    model: Model
    mesh: Mesh
    clock: Clock
    seed: int
    buckets: tuple[int, ...]
    decode_tensor: int = 0  # devices that share the weights while sampling; 0: as in training
    base: Callable[[], Any] | None = None  # makes the parameters that the run began with, laid out as in training

    def perturbed(self, opening: str = "", reworded: bool = False) -> "Context":
        """The same split asked in other words, or with a text that every response is made to begin with, or both.

        The opening ends each prompt. Raises UserError where the task has no questions in other words.
        """
        if not (opening or reworded):
            return self
        if reworded and not all(e.reworded for e in self.data.examples):
            raise UserError(f"split {self.split!r}: the task has no questions in other words; leave `reworded` false")
        examples = [
            dataclasses.replace(e, prompt=(e.reworded if reworded else e.prompt) + opening) for e in self.data.examples
        ]
        pairs = self.tokenizer.encode_pairs([(e.prompt, e.target) for e in examples])
        data = Tokenized(examples, [prompt for prompt, _ in pairs], [target for _, target in pairs])
        name = self.split + (" reworded" if reworded else "") + (f" after {opening.strip()!r}" if opening else "")
        return self._replace(split=name, data=data)

    @property
    def decode_mesh(self) -> Mesh:
        return sharding.decode_mesh(self.mesh, self.decode_tensor)


class Part(NamedTuple):
    """What an evaluator found on some rows of its split (row e is example e); `measures` are of the whole run."""

    rows: Sequence[int] | np.ndarray
    columns: Mapping[str, np.ndarray] = {}
    texts: Sequence[dict] = ()
    measures: Mapping[str, float] = {}


class Collected:
    """The parts of one evaluation of a split so far. Rows that are not in any have zeros in all columns."""

    def __init__(self, examples: int):
        self.columns: dict[str, np.ndarray] = {}
        self.texts: list[dict] = []
        self.measures: dict[str, float] = {}
        self.done = np.zeros(examples, bool)
        self.finished = False

    def add(self, part: Part) -> None:
        for name, values in part.columns.items():
            self.columns.setdefault(name, np.zeros(len(self.done), values.dtype))[part.rows] = values
        self.done[part.rows] = True
        self.texts += part.texts
        self.measures |= part.measures

    def all(self, parts: Iterable[Part]) -> "Collected":
        """This, with all of `parts`."""
        for part in parts:
            self.add(part)
        return self
