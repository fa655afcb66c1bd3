"""Token and target NLL: the training loss, and the measure of memorization."""

import jax
import jax.numpy as jnp

from premem_jax.models.decoder import Model


def token_nll(model: Model, params, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
    """Negative log-likelihood of each token given the previous ones: (B, T) fp32 nats, 0 at the first position.

    Where sequences share rows, `segments_BT` numbers them, see `Decoder`. The first token of each is not predicted:
    what stands there means nothing.
    """
    hidden_BTD, _ = model.bind(params)(tokens_BT, segments_BT)  # also of the last position, which keeps T round
    return nll_of(model, params, hidden_BTD, tokens_BT)


def nll_of(model: Model, params, hidden_BTD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """`token_nll` of final hidden states that are there already."""
    nll_BT = model.bind(params).next_token_nll(hidden_BTD, jnp.roll(tokens_BT, -1, axis=1))
    return jnp.pad(nll_BT[:, :-1], [(0, 0), (1, 0)])


def by_segment(x_XT: jax.Array, segments_XT: jax.Array, wanted: jax.Array) -> jax.Array:
    """Sums of `x_XT` over each of the `wanted` segments, in their shape."""
    mine_XTS = segments_XT[..., None] == wanted.ravel()
    return jnp.sum(jnp.sum(jnp.where(mine_XTS, x_XT[..., None], 0), axis=1), axis=0).reshape(wanted.shape)


def next_token_logits(model: Model, params, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
    """(B, T - 1, V) fp32: the logits from which each token but the first is predicted."""
    decoder = model.bind(params)
    hidden, _ = decoder(tokens_BT, segments_BT)
    return decoder.logits(hidden)[:, :-1]


def log_likelihood(model: Model, params, tokens_BT: jax.Array, weight_BT: jax.Array) -> jax.Array:
    """(B,) fp32 nats: the log-likelihood of each row's response, summed over its tokens by `weight_BT`."""
    return -jnp.sum(token_nll(model, params, tokens_BT) * weight_BT, axis=1)


def next_log_p(model: Model, params, tokens_BT: jax.Array, weight_BT: jax.Array, ids_BK: jax.Array) -> jax.Array:
    """(B, K) fp32 nats: log-probabilities of K tokens of each row where it has its first token of weight 1."""
    decoder = model.bind(params)
    hidden_BTD, _ = decoder(tokens_BT)
    before_B = jnp.argmax(weight_BT, axis=1) - 1
    logits_BV = decoder.logits(jnp.take_along_axis(hidden_BTD, before_B[:, None, None], axis=1))[:, 0]
    return jnp.take_along_axis(jax.nn.log_softmax(logits_BV), ids_BK, axis=1)


def target_nll(
    model: Model,
    params,
    tokens_BT: jax.Array,
    weight_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    *,
    examples=0,
) -> tuple[jax.Array, jax.Array]:
    """Mean NLL per target token of each row (B,), and the number of target tokens (B,).

    Its exp is the perplexity by which Kang et al. (arXiv 2411.07681) define memorization. `weight_BT` is 1 on the
    target (the solution and its stop marker) and 0 elsewhere; rows without a target get 0.

    Where sequences share rows, `segments_BT` numbers them from 1, and both are of the first so many `examples`.
    """
    total = lambda x_BT: jnp.sum(x_BT, axis=1)
    if segments_BT is not None:
        total = lambda x_BT: by_segment(x_BT, segments_BT, 1 + jnp.arange(examples))
    nll, count = map(total, (token_nll(model, params, tokens_BT, segments_BT) * weight_BT, weight_BT))
    return nll / jnp.maximum(count, 1), count.astype(jnp.int32)


def greedy_match(model: Model, params, tokens_BT: jax.Array, weight_BT: jax.Array) -> tuple[jax.Array, ...]:
    """Whether the greedy response to each prompt is the target (B,), and what `target_nll` gives.

    The greedy response is the target if and only if each token of the target is the likeliest one after those before
    it, so one forward pass decides. `weight_BT` is 1 on the target.
    """
    decoder = model.bind(params)
    hidden, _ = decoder(tokens_BT)
    logits_BTV = decoder.logits(hidden)[:, :-1]
    next_BT, counts_BT = tokens_BT[:, 1:], weight_BT[:, 1:]
    nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), next_BT[..., None], axis=-1)[..., 0]
    match_B = jnp.all((jnp.argmax(logits_BTV, axis=-1) == next_BT) | (counts_BT == 0), axis=1)
    return match_B, mean_over_target(nll_BT, counts_BT), jnp.sum(counts_BT, axis=1).astype(jnp.int32)


def mean_over_target(nll_BT: jax.Array, weight_BT: jax.Array) -> jax.Array:
    """Mean NLL per target token of each row (B,); 0 for a row without a target."""
    return jnp.sum(nll_BT * weight_BT, axis=1) / jnp.maximum(jnp.sum(weight_BT, axis=1), 1)
