"""Inputs with which an evaluator lowers its program for a plan, from shapes alone."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.grading.grader import Grader
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.decoder import Model


class Planned(NamedTuple):
    """Model, mesh and shapes of weights, of the layout of the evaluator; T tokens per example."""

    shape: ModelConfig
    T: int
    mesh: Mesh
    model: Model
    params: dict  # as shapes
    grader: Grader

    def batch(self, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        """Shape of an array whose first axis is the batch."""
        return sharding.abstract_batch(self.mesh, shape, dtype)

    def copies(self, tree):
        """Shapes of replicated arrays."""
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(self.mesh))
        return jax.tree.map(place, tree)

    @property
    def key(self) -> jax.ShapeDtypeStruct:
        """A random key."""
        return self.copies(jax.eval_shape(jax.random.key, 0))
