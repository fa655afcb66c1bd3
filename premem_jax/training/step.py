"""The train state and one update of it."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax

from premem_jax.models import adapters
from premem_jax.models.decoder import Model
from premem_jax.training.losses import Loss


def init_state(params, optimizer: optax.GradientTransformation) -> dict:
    """The train state: `params` and `opt_state` in fp32, `step` updates done, `good` until a loss is not finite.

    Where `params` have adapters, these alone are the state's `params`, and the rest is `frozen`.
    """
    trained, frozen = adapters.split(params)
    state = {"params": trained, "opt_state": optimizer.init(trained), "step": jnp.int32(0), "good": jnp.bool_(True)}
    return state | ({"frozen": frozen} if frozen else {})


def weights(state: Mapping, member: int | None = None) -> dict:
    """The weights of a train state, as they are sampled, scored, probed and exported: with adapters and frozen ones.

    In a stack, those of one member.
    """
    whole = adapters.join(state["params"], state.get("frozen", {}))
    return whole if member is None else _take(whole, member)


def changing(state: Mapping) -> dict:
    """What training changes, and a checkpoint keeps: everything but frozen weights."""
    return {name: value for name, value in state.items() if name != "frozen"}


@jax.jit
def _take(params, member):
    return jax.tree.map(lambda x: x[member], params)


def train_step(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    state: dict,
    batch: dict,
    rate,
):
    """One update on a batch, accumulated over `micro_batches` parts.

    The loss is the mean over all units of the batch, not a mean of means. Once the loss or the gradient is not finite,
    `good` turns false and the state stays as it was before that batch.

    Args:
      state: see `init_state`; donate it.
      batch: the arrays that the loss takes, see `losses.needed`.
      rate: learning rate, a scalar.

    Returns:
      The new state and fp32 scalars: `loss`, `grad_norm` (before clipping), the count under the name `loss.unit`, and
      the loss's own metrics, divided by the count.
    """
    mean, count, gradient = loss_gradient(model, loss, weights(state), batch, micro_batches)
    norm = optax.tree.norm(gradient)

    direction, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
    params = jax.tree.map(lambda p, d: p - rate * d, state["params"], direction)
    good = state["good"] & jnp.isfinite(mean["loss"]) & jnp.isfinite(norm)
    updated = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
    frozen = {k: state[k] for k in updated}
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), updated, frozen) | {"good": good}
    return state | new, mean | {"grad_norm": norm, loss.unit: count}


def loss_gradient(
    model: Model, loss: Loss, params, batch: dict, micro_batches: int
) -> tuple[dict[str, jax.Array], jax.Array, dict]:
    """Mean loss and metrics of a batch, the count they are divided by, and the gradient of the mean loss.

    The gradient is that of what is trained, see `adapters.split`. Scans over `micro_batches` parts; only one at a time
    has its activations in memory.
    """
    # Micro-batch a takes rows a, a + A, a + 2A, ..., and so an equal share of every device's rows.
    split = lambda x: x.reshape(len(x) // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    parts = jax.tree.map(split, batch)
    trained, frozen = adapters.split(params)

    def total(trained, part):
        sums = loss(model, adapters.join(trained, frozen), part)
        return sums.total, sums

    def add(carry, part):
        (_, sums), gradient = jax.value_and_grad(total, has_aux=True)(trained, part)
        return jax.tree.map(jnp.add, carry, (sums, gradient)), None

    shapes = jax.eval_shape(partial(loss, model), params, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes, trained))
    (sums, gradient), _ = jax.lax.scan(add, zero, parts)
    count = jnp.maximum(sums.count, 1e-9)
    means = {"loss": sums.total / count} | {name: value / count for name, value in sums.metrics.items()}
    return means, sums.count, jax.tree.map(lambda g: g / count, gradient)


def stacked_step(*args):
    """`train_step` for a stack of members: state, batch, rate and results have a leading member axis.

    A member whose loss is not finite keeps its state; the others continue.
    """
    *bound, state, batch, rate = args
    return jax.vmap(partial(train_step, *bound))(state, batch, rate)
