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
from premem_jax.models.nll import by_segment, log_likelihood, next_token_logits, nll_of
from premem_jax.training.objectives import Responses, shared
from premem_jax.training.optimizer import decayed
from premem_jax.training.step import loss_gradient, weights


def response_gradients(
    model: Model, loss: Responses, params, batch: Mapping[str, jax.Array], micro_batches: int
) -> list[dict]:
    """The gradient of the mean loss as a sum of R parts, one per response of a prompt.

    The coefficients of (π − y) are held constant.
    """
    parts = [dataclasses.replace(loss, only=r) for r in range(batch["responses"].shape[1])]
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
    mean_dtype: str = "float32",  # changes nothing: what is kept is in the state
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


SOURCES = ("chosen", "rejected")  # by the place of the response; then come momentum and decay


def next_update(
    model: Model, loss: Responses, micro_batches: int, state: Mapping, batch, rate, **optimizer: float | str
) -> dict[str, dict]:
    """`update_by_source` of the update that `train_step` would make: `chosen`, `rejected`, `momentum`, `decay`.

    A batch of single responses has no `rejected`. The trees are in the compute dtype, in which they meet activations.
    """
    gradients = response_gradients(model, loss, weights(state), batch, micro_batches)
    parts = update_by_source(dict(zip(SOURCES, gradients, strict=False)), state, rate, **optimizer)
    return jax.tree.map(lambda x: x.astype(model.dtype), parts)


def first_order(function: Callable, params, directions: Mapping[str, dict]) -> dict[str, jax.Array]:
    """The derivative of `function(params)` along each direction: one linearization, one product per direction."""
    _, along = jax.linearize(function, params)
    return {name: along(_like(params, direction)) for name, direction in directions.items()}


def _like(params, direction):
    """A direction with the number types of the parameters."""
    return jax.tree.map(lambda d, p: d.astype(p.dtype), direction, params)


def central_difference(function: Callable, params, direction, share: float = 5e-4) -> jax.Array:
    """The same for one direction by a central difference, for functions without forward mode.

    The parameters move by `share` of their norm, whatever the length of the direction: in fp32, smaller moves drown in
    rounding, which grows with 1/share, and larger ones in the third derivative, which grows with its square.
    """
    length = optax.tree.norm(direction)
    step = share * optax.tree.norm(params) / jnp.where(length > 0, length, 1)
    moved = lambda sign: function(jax.tree.map(lambda p, d: p + sign * step * d, params, direction))
    return (moved(1.0) - moved(-1.0)) / (2 * step)


def with_forward_mode(model: Model, mesh) -> Model:
    """The model on the same mesh with reference attention: the kernels `splash` and `cudnn` have no forward mode."""
    return model.on(mesh=mesh, attention="reference")


def influence(model: Model, params, directions: Mapping[str, dict], tokens_BT, weight_BT) -> dict[str, jax.Array]:
    """First-order change of log π of each response (B,) by source, in nats. `directions` are of what is trained."""
    trained, frozen = adapters.split(params)
    score = lambda trained: log_likelihood(model, adapters.join(trained, frozen), tokens_BT, weight_BT)
    return first_order(score, trained, directions)


def effects(model: Model, params, directions: Mapping[str, dict], tokens_BT, weight_BT) -> dict[str, jax.Array]:
    """Of each response (B,), in nats: `influence`, and as `actual` the change of log π by all directions together.

    `norm_of_a` is the mean of ‖A‖_F over the places of the response.
    """

    trained, frozen = adapters.split(params)

    def observed(trained):
        params = adapters.join(trained, frozen)
        hidden_BTD, _ = model.bind(params)(tokens_BT)
        nll_BT = nll_of(model, params, hidden_BTD, tokens_BT)
        return -jnp.sum(nll_BT * weight_BT, axis=1), norm_of_a(model.bind(params).logits(hidden_BTD)[:, :-1])

    now_B, along, places_BT = jax.linearize(observed, trained, has_aux=True)
    found = {name: along(_like(trained, direction)) for name, direction in directions.items()}
    after = jax.tree.map(lambda p, *parts: p + sum(parts), trained, *directions.values())
    then_B = log_likelihood(model, adapters.join(after, frozen), tokens_BT, weight_BT)
    count_B = jnp.maximum(jnp.sum(weight_BT, axis=1), 1)
    return found | {"actual": then_B - now_B, "norm_of_a": jnp.sum(places_BT * weight_BT[:, 1:], axis=1) / count_B}


def norms_of_g(model: Model, loss: Responses, params, batch: Mapping[str, jax.Array]) -> jax.Array:
    """(R,): ‖G‖ of the chosen responses of a batch, and of the rejected ones: the gradient of the mean loss at their
    logits, whose column at a token is the coefficient times π − y."""
    of_response = lambda x_XT: by_segment(x_XT * batch["weights"][:, 1:], batch["segments"][:, 1:], batch["responses"])
    mass_XTV = jax.nn.softmax(next_token_logits(model, params, batch["tokens"], shared(batch)))
    own_XT = jnp.take_along_axis(mass_XTV, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    square_BR = of_response(jnp.sum(mass_XTV**2, axis=-1) - 2 * own_XT + 1)
    policy_BR, length_BR = of_response(jnp.log(own_XT)), of_response(jnp.ones_like(own_XT))
    (_, c_BR), _ = loss.pull(policy_BR, batch.get(loss.objective.given), length_BR)
    c_BR = jnp.where(length_BR > 0, c_BR, 0)
    prompts = jnp.maximum(jnp.sum(jnp.any(length_BR > 0, axis=1)), 1)
    return jnp.sqrt(jnp.sum(c_BR**2 * square_BR, axis=0)) / prompts


def kernel_size(model: Model, params, seen: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], key, draws: int):
    """‖K‖_F between all places of the responses `seen` (B, T) and of the responses of a batch, estimated."""

    trained, frozen = adapters.split(params)

    def at_places(tokens_BT, weight_BT, segments_BT=None):
        logits = lambda trained: next_token_logits(model, adapters.join(trained, frozen), tokens_BT, segments_BT)
        return lambda trained: logits(trained) * weight_BT[:, 1:, None]

    of_batch = at_places(batch["tokens"], batch["weights"], shared(batch))
    return norm_of_k(at_places(seen["tokens"], seen["weights"]), of_batch, trained, key, draws)


# ---- A, K and G ------------------------------------------------------------------------------------------------------


def through_softmax(logits, change) -> jax.Array:
    """A dz (..., V): the first-order change of log π by a change dz of the logits; A = I − 1 πᵀ is never formed."""
    return change - jnp.sum(jax.nn.softmax(logits) * change, axis=-1, keepdims=True)


def norm_of_a(logits) -> jax.Array:
    """‖A‖_F (...) = √(V − 2 + V ‖π‖²): large where the prediction is peaked."""
    V, mass = logits.shape[-1], jax.nn.softmax(logits)
    return jnp.sqrt(V - 2 + V * jnp.sum(mass**2, axis=-1))


def residual(logits, tokens) -> jax.Array:
    """π − y (..., V), which times the coefficient of the response is G, the gradient at its logits."""
    return jax.nn.softmax(logits) - jax.nn.one_hot(tokens, logits.shape[-1], dtype=logits.dtype)


def kernel_product(seen: Callable, trained: Callable, params, vector) -> jax.Array:
    """K v = J_seen (J_trainedᵀ v), of two functions from parameters to logits, in the shape of `seen(params)`."""
    _, back = jax.vjp(trained, params)
    return jax.jvp(seen, (params,), back(vector))[1]


def kernel(seen: Callable, trained: Callable, params) -> jax.Array:
    """K itself, (*shape of seen, *shape of trained), a column at a time: for tiny models."""
    like = jax.eval_shape(trained, params)
    basis = jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
    columns = jax.lax.map(lambda v: kernel_product(seen, trained, params, v), basis)
    return jnp.moveaxis(columns, 0, -1).reshape(*columns.shape[1:], *like.shape)


def norm_of_k(seen: Callable, trained: Callable, params, key, draws: int) -> jax.Array:
    """‖K‖_F, estimated: E ‖K ε‖² over normal ε is its square (Hutchinson). A vjp and a jvp for each draw."""
    like = jax.eval_shape(trained, params)

    def square(key):
        v = jax.random.normal(key, like.shape, like.dtype)
        return jnp.sum(kernel_product(seen, trained, params, v) ** 2)

    return jnp.sqrt(jnp.mean(jax.lax.map(square, jax.random.split(key, draws))))
