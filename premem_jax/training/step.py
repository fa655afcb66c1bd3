"""The train state and one update of it."""

import jax
import jax.numpy as jnp
import optax

from premem_jax.models.decoder import Model
from premem_jax.scoring.likelihood import token_nll


def init_state(params, optimizer: optax.GradientTransformation) -> dict:
    """The train state: `params` and `opt_state` in fp32, `step` updates done, `good` until a loss is not finite."""
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0), "good": jnp.bool_(True)}


def train_step(
    model: Model, optimizer: optax.GradientTransformation, micro_batches: int, state: dict, batch: dict, rate
):
    """One update on a batch, in `micro_batches` parts whose sum is the gradient of the whole batch.

    The loss is the mean over all weighted tokens of the batch, not a mean of means. Once the loss or the gradient is
    not finite, `good` turns false and the state stays as it was before that batch.

    Args:
      state: see `init_state`; donate it.
      batch: `tokens` (B, T) int32 and `weights` (B, T) fp32, the loss weight of predicting each token.
      rate: learning rate, a scalar.

    Returns:
      The new state and `loss` (nats per token), `grad_norm` (before clipping), `tokens` (weighted count).
    """
    loss, gradient = loss_gradient(model, state["params"], batch, micro_batches)
    norm = optax.tree.norm(gradient)

    direction, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
    params = jax.tree.map(lambda p, d: p - rate * d, state["params"], direction)
    good = state["good"] & jnp.isfinite(loss) & jnp.isfinite(norm)
    updated = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
    frozen = {k: state[k] for k in updated}
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), updated, frozen) | {"good": good}
    return new, {"loss": loss, "grad_norm": norm, "tokens": jnp.sum(batch["weights"])}


def loss_gradient(model: Model, params, batch: dict, micro_batches: int) -> tuple[jax.Array, dict]:
    """The mean loss over the weighted tokens of a batch, and its gradient.

    Scans over `micro_batches` parts, of which one at a time has its activations in memory.
    """
    B = batch["tokens"].shape[0]
    # Rows a, a + A, a + 2A, ... make micro-batch a, so that each keeps its share of every device's rows.
    split = lambda x: x.reshape(B // micro_batches, micro_batches, -1).swapaxes(0, 1)

    def loss_sum(params, part):
        return jnp.sum(token_nll(model, params, part["tokens"]) * part["weights"])

    def add(carry, part):
        value, gradient = jax.value_and_grad(loss_sum)(params, part)
        return jax.tree.map(jnp.add, carry, (value, gradient)), None

    total = jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (value, gradient), _ = jax.lax.scan(add, zero, jax.tree.map(split, batch))
    return value / total, jax.tree.map(lambda g: g / total, gradient)
