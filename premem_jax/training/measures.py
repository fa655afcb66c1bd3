"""Measures of a whole run: gradient variance, and distance of the weights from initialization."""

import jax
import jax.numpy as jnp

from premem_jax.models import adapters
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.decoder import Model
from premem_jax.models.nll import next_token_logits, nll_of
from premem_jax.training.losses import NEXT_TOKEN
from premem_jax.training.step import loss_gradient


def no_gradients(params) -> tuple:
    """Initial accumulator: count, mean gradient and sum of squared deviations."""
    return jnp.float32(0), jax.tree.map(jnp.zeros_like, adapters.split(params)[0]), jnp.float32(0)


def add_gradient(model: Model, micro_batches: int, seen: tuple, params, batch: dict) -> tuple:
    """Adds the gradient of one more batch to `seen` by Welford's update (Technometrics 4(3), 1962).

    Squared deviations are summed over all trained parameters, so the accumulator needs one copy of these for the mean
    gradient. No large sums are subtracted.
    """
    count, mean, squares = seen
    *_, gradient = loss_gradient(model, NEXT_TOKEN, params, batch, micro_batches)
    deviation = jax.tree.map(lambda g, m: g - m, gradient, mean)
    mean = jax.tree.map(lambda m, d: m + d / (count + 1), mean, deviation)
    square = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(deviation))
    return count + 1, mean, squares + square * count / (count + 1)


def squared_distance(config: ModelConfig, params: dict, base: dict) -> jax.Array:
    """Squared L2 distance over all weights except the embedding and the head; adapters count as what they add."""
    inside = lambda tree: {name: leaf for name, leaf in tree.items() if name not in ("embedding", "head")}
    inner = lambda tree: adapters.merged(config.lora, inside(tree))
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), inner(params), inner(base))
    return sum(jax.tree.leaves(squares))


def pair_measures(model: Model, params, tokens_XT, weight_XT) -> tuple[jax.Array, jax.Array]:
    """Of pairs, rows 2b and 2b + 1: log-likelihoods (B, 2) of both responses in nats, and CHES (B,), both fp32.

    CHES = ⟨s⁺, s⁻⟩ − ‖s⁺‖², where s is the sum over a response of the final hidden states that predict its tokens. A
    pair whose responses are alike by it is one whose chosen response loses likelihood (Razin et al., arXiv 2410.08847,
    definition 2).
    """
    hidden_XTD, _ = model.bind(params)(tokens_XT)
    log_BR = -jnp.sum(nll_of(model, params, hidden_XTD, tokens_XT) * weight_XT, axis=1).reshape(-1, 2)
    sum_XD = jnp.einsum("xtd,xt->xd", hidden_XTD[:, :-1].astype(jnp.float32), weight_XT[:, 1:])
    chosen_BD, rejected_BD = sum_XD[0::2], sum_XD[1::2]
    return log_BR, jnp.sum(chosen_BD * rejected_BD, axis=1) - jnp.sum(chosen_BD**2, axis=1)


def prefix_measures(model: Model, params, base, tokens_BT, weight_BT) -> tuple[jax.Array, ...]:
    """What the model says at each place of a response, given what stands before it; sums over places, each (B,) fp32.

    The log-probability of the likeliest token, the number of places, the entropy in nats, the mass of the likeliest
    token, and the share of the vocabulary that is less likely than under the parameters `base`.
    """

    log_probabilities = lambda params: jax.nn.log_softmax(next_token_logits(model, params, tokens_BT))

    log_BTV, weight_BT = log_probabilities(params), weight_BT[:, 1:]
    peak_BT = jnp.max(log_BTV, axis=-1)
    entropy_BT = -jnp.sum(jnp.exp(log_BTV) * log_BTV, axis=-1)
    falling_BT = jnp.mean(log_BTV < log_probabilities(base), axis=-1)
    each = (peak_BT, jnp.ones_like(peak_BT), entropy_BT, jnp.exp(peak_BT), falling_BT)
    return tuple(jnp.sum(x_BT * weight_BT, axis=1) for x_BT in each)
