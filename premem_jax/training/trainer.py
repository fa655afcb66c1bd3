"""A model, its optimizer and its compiled update on one mesh."""

from functools import partial

import jax
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.models.decoder import Model, init
from premem_jax.programs import Clock, Program
from premem_jax.training.optimizer import adamw
from premem_jax.training.step import init_state, train_step


class Trainer:
    """Makes train states laid out on `mesh`, and `program(state, batch, rate)`, which updates one in place."""

    def __init__(self, model: Model, mesh: Mesh, clock: Clock, optimizer: dict, micro_batches: int):
        self.model, self._clock = model, clock
        self._optimizer = adamw(**optimizer)
        self._init_params = partial(init, model.config)
        self.abstract_state = jax.eval_shape(lambda: init_state(self._init_params(jax.random.key(0)), self._optimizer))
        self._layout = sharding.shardings(mesh, self.abstract_state)
        self.program = Program(
            partial(train_step, model, self._optimizer, micro_batches),
            clock,
            donate_argnums=0,
            out_shardings=(self._layout, sharding.replicated(mesh)),
        )

    def random_parameters(self, seed: int):
        """Fresh parameters, made where they live."""
        with self._clock("compile"):
            return jax.jit(self._init_params, out_shardings=self._layout["params"])(jax.random.key(seed))

    def init_state(self, params) -> dict:
        """The state before the first update; takes over `params`."""
        with self._clock("compile"):
            make = jax.jit(lambda p: init_state(p, self._optimizer), out_shardings=self._layout, donate_argnums=0)
            return make(params)
