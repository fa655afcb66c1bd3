"""Distance from initialization: how far have the weights moved from those that the finetune began with?"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Context, Part
from premem_jax.programs import Program


def squared_distance(params: dict, base: dict) -> jax.Array:
    """Squared L2 distance over all weights but the embedding and the head."""
    inner = lambda tree: {name: leaf for name, leaf in tree.items() if name not in ("embedding", "head")}
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), inner(params), inner(base))
    return sum(jax.tree.leaves(squares))


class Distance:
    """The squared distance of Kang et al. (arXiv 2411.07681, development code).

    The first weights are made again for each evaluation and dropped after it. They take the place that the gradient
    has in an update, so an evaluation needs no more memory than training, and a run that continues knows them too.
    """

    phase, layout = "distance", "train"

    def __init__(self, context: Context):
        """Raises UserError where the context has no base."""
        if context.base is None:
            raise UserError("distance: the weights that the run began with are not known")
        self._base = context.base
        layout = sharding.replicated(context.mesh)
        self._program = Program(partial(squared_distance), context.clock, out_shardings=layout)

    def run(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Nothing per example; the measure `distance_from_initialization`."""
        yield Part((), measures={"distance_from_initialization": float(self._program(params, self._base()))})
