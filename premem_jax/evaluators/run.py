"""The interface between evaluators and their run: programs, batches and random keys on its mesh."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.data.packing import Packing
from premem_jax.data.pipeline import Tokenized, evaluation_batches, shared_batches
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.models.decoder import Model
from premem_jax.running import processes
from premem_jax.running.programs import Clock, Program
from premem_jax.sampling.sampler import to_decode


class Run(NamedTuple):
    """A model on a mesh, with weights as in training; `at("decode")` is the same run as in sampling."""

    tokenizer: Tokenizer
    model: Model
    mesh: Mesh
    clock: Clock
    seed: int = 0
    buckets: tuple[int, ...] = ()
    decode_tensor: int = 0  # devices that share the weights while sampling; 0: as in training
    base: Callable[[], Any] | None = None  # makes the weights that the run began with, laid out as in training

    def at(self, layout: str) -> "Run":
        """This run with the mesh and model of `layout`, `train` or `decode`."""
        if layout == "train":
            return self
        mesh = sharding.decode_mesh(self.mesh, self.decode_tensor)
        return self._replace(mesh=mesh, model=self.model.on(mesh=mesh))

    def weights(self, params, layout: str):
        """Converts training weights to `layout`: for `decode`, cast to the compute dtype, unstacked and resharded."""
        if layout == "train":
            return params
        convert = partial(to_decode, self.model.dtype)
        shapes = sharding.shardings(self.at(layout).mesh, jax.eval_shape(convert, params))
        return Program(convert, self.clock, out_shardings=shapes)(params)

    @property
    def everywhere(self) -> jax.sharding.NamedSharding:
        """Sharding of a replicated array."""
        return sharding.replicated(self.mesh)

    def layout(self, params):
        """Sharding of the parameters by the table of rules."""
        return sharding.shardings(self.mesh, params)

    def program(self, function: Callable, *bound, out_shardings=None, donate_argnums=(), **settings) -> Program:
        """A program of `function` with its first arguments and settings bound; results are replicated."""
        layout = self.everywhere if out_shardings is None else out_shardings
        options = dict(out_shardings=layout, donate_argnums=donate_argnums)
        return Program(partial(function, *bound, **settings), self.clock, **options)

    def once(self, function: Callable):
        """Calls `function()` on process 0 only and broadcasts the result, a JSON value."""
        return processes.once(function)

    def places_here(self, size: int) -> np.ndarray:
        """Indices of a batch of `size` that this process provides."""
        return sharding.places_here(self.mesh, size)

    def put(self, arrays):
        """Puts arrays of the `places_here` of a batch on the mesh, sharded."""
        return sharding.put_batch(self.mesh, arrays, here=True)

    def put_copies(self, arrays):
        """Puts arrays on the mesh, replicated."""
        return sharding.put_replicated(self.mesh, arrays)

    def key(self, *numbers: int) -> jax.Array:
        """The run's random key, folded with some numbers."""
        return sharding.random_key(self.mesh, self.seed, *numbers)

    def batches(
        self, data: Tokenized, size: int, only: Sequence[int] | None = None, *, prompts_only: bool = False
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Batches of the rows `only` (default: all), shortest first: row numbers, and `collate` arrays on the mesh."""
        settings = dict(batch=size, buckets=self.buckets, prompts_only=prompts_only, only=only)
        for rows, arrays in evaluation_batches(data, **settings, here=self.places_here(size)):
            yield rows, self.put(arrays)

    def shared_batches(
        self, data: Tokenized, size: int, each: Sequence[int], only: Sequence[int] | None = None
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Batches whose examples share rows with room for `each` example: row numbers, and arrays on the mesh."""
        packing = Packing.on(self.mesh, each, size)
        for rows, arrays in shared_batches(data, packing, batch=size, buckets=self.buckets, only=only):
            yield rows, self.put(arrays)
