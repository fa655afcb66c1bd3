"""First-order effect of one update on the log-likelihood of any response, split by the update's sources.

Ren & Sutherland (arXiv 2407.10490, section 3) split the change of log π(y|x_o) into A K G for plain SGD. Here the
kernel K is never built: forward mode gives the derivative along the optimizer's actual update, which is a sum. With
clip factor and second moment held constant, AdamW is linear in its terms: the gradient of each response, the old
momentum, and weight decay.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from premem_jax.models import adapters
from premem_jax.models.decoder import Model
from premem_jax.models.nll import log_likelihood
from premem_jax.training.objectives import Responses
from premem_jax.training.optimizer import decayed
from premem_jax.training.step import loss_gradient


def response_gradients(
    model: Model, loss: Responses, params, batch: Mapping[str, jax.Array], micro_batches: int
) -> list[dict]:
    """The gradient of the mean loss as a sum of R parts, one per response of a prompt.

    The coefficients of (π − y) are held constant.
    """
    parts = [dataclasses.replace(loss, only=r) for r in range(batch["tokens"].shape[1])]
    return [loss_gradient(model, part, params, batch, micro_batches)[-1] for part in parts]


def update_by_source(
    gradients: Mapping[str, dict],
    state: Mapping,
    rate,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
) -> dict[str, dict]:
    """The change of the trained parameters that AdamW makes next, as a sum of trees: one for each of `gradients`, which
    sum to the whole gradient, and `momentum` and `decay`.

    Args:
      state: the train state before the update.
      rate: its learning rate.
    """
    whole = jax.tree.map(lambda *parts: sum(parts), *gradients.values())
    norm = optax.tree.norm(whole)
    clip = jnp.where(norm < clip_norm, 1.0, clip_norm / norm)
    adam = next(part for part in state["opt_state"] if hasattr(part, "nu"))
    t = adam.count + 1
    size = jax.tree.map(
        lambda nu, g: jnp.sqrt((b2 * nu + (1 - b2) * (clip * g) ** 2) / (1 - b2**t)) + eps, adam.nu, whole
    )
    scaled = lambda factor, tree: jax.tree.map(lambda x, s: -rate * factor * x / (1 - b1**t) / s, tree, size)
    parts = {name: scaled((1 - b1) * clip, gradient) for name, gradient in gradients.items()}
    parts["momentum"] = scaled(b1, adam.mu)
    params = state["params"]
    parts["decay"] = jax.tree.map(lambda p, on: -rate * weight_decay * p * on, params, decayed(params))
    return parts


def first_order(function: Callable, params, directions: Mapping[str, dict]) -> dict[str, jax.Array]:
    """The derivative of `function(params)` along each direction: one linearization, one product per direction."""
    _, along = jax.linearize(function, params)
    return {name: along(direction) for name, direction in directions.items()}


def central_difference(function: Callable, params, direction, step: float = 1.0) -> jax.Array:
    """The same for one direction by central differences with ± `step`, for functions without forward mode."""
    moved = lambda sign: function(jax.tree.map(lambda p, d: p + sign * step * d, params, direction))
    return (moved(1.0) - moved(-1.0)) / (2 * step)


def influence(model: Model, params, directions: Mapping[str, dict], tokens_BT, weight_BT) -> dict[str, jax.Array]:
    """First-order change of log π of each response (B,) by source, in nats. `directions` are of what is trained."""
    trained, frozen = adapters.split(params)
    score = lambda trained: log_likelihood(model, adapters.join(trained, frozen), tokens_BT, weight_BT)
    return first_order(score, trained, directions)
