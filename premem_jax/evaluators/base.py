"""What every evaluator is given."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.data.pipeline import Tokenized
from premem_jax.data.tokenizers import Tokenizer
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

    def after(self, opening: str) -> "Context":
        """The same split with a text that every response is made to begin with: it ends each prompt."""
        examples = [dataclasses.replace(e, prompt=e.prompt + opening) for e in self.data.examples]
        pairs = self.tokenizer.encode_pairs([(e.prompt, e.target) for e in examples])
        data = Tokenized(examples, [prompt for prompt, _ in pairs], [target for _, target in pairs])
        return self._replace(split=f"{self.split} after {opening.strip()!r}", data=data)

    @property
    def decode_mesh(self) -> Mesh:
        return sharding.decode_mesh(self.mesh, self.decode_tensor)
