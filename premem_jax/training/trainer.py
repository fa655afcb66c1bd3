"""A model, its loss, its optimizer and its compiled update on one mesh."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.models.adapters import frozen_in
from premem_jax.models.decoder import Model, init
from premem_jax.running.programs import Clock, Program
from premem_jax.training.losses import NEXT_TOKEN, Loss
from premem_jax.training.optimizer import adamw
from premem_jax.training.step import init_state, stacked_step, train_step, weights


class Trainer:
    """Makes train states on `mesh`, and `program(state, batch, rate)`, which updates a state in place.

    With `members` above 0 it trains a stack of that many models of one shape in one program: states, batches, rates and
    results have a leading member axis.
    """

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        clock: Clock,
        optimizer: dict,
        micro_batches: int,
        loss: Loss = NEXT_TOKEN,
        members: int = 0,
    ):
        self.model, self.mesh, self.clock, self.loss, self.members = model, mesh, clock, loss, members
        self._init_params = partial(init, model.config)
        begin = lambda params: init_state(frozen_in(model.dtype, params), adamw(**optimizer))
        self._begin = jax.vmap(begin) if members else begin
        params = jax.eval_shape(self._init_params, jax.random.key(0))
        if members:
            params = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), params)
        self.abstract_state = jax.eval_shape(self._begin, params)
        self._layout = sharding.shardings(mesh, self.abstract_state)
        self.program = Program(
            partial(stacked_step if members else train_step, model, loss, adamw(**optimizer), micro_batches),
            clock,
            donate_argnums=0,
            out_shardings=(self._layout, sharding.replicated(mesh)),
        )

    def random_parameters(self, seed: int):
        """Random parameters of one model, created in their sharding."""
        with self.clock("compile"):
            layout = sharding.shardings(self.mesh, jax.eval_shape(self._init_params, jax.random.key(0)))
            return jax.jit(self._init_params, out_shardings=layout)(jax.random.key(seed))

    def stack(self, params: Sequence):
        """Stacks the members' parameters, each as from `random_parameters`, into one tree."""
        with self.clock("compile"):
            return jax.jit(_joined, out_shardings=weights(self._layout))(*params)

    def init_state(self, params) -> dict:
        """The state before the first update. Donates `params`; for a stack, the result of `stack`."""
        with self.clock("compile"):
            return jax.jit(self._begin, out_shardings=self._layout, donate_argnums=0)(params)


def _joined(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
