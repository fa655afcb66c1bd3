"""Sampling: prompts are prefilled once, fanned out to R samples each, and decoded in one compiled loop."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from premem_jax.models.decoder import Cache, Model


class Samples(NamedTuple):
    """`tokens` (B, R, T) without the stop marker, zero after the end; `length` (B, R) tokens before the end."""

    tokens: jax.Array
    length: jax.Array


class _State(NamedTuple):
    step: jax.Array
    tokens: jax.Array  # (X, T), X = B * R
    length: jax.Array  # (X,)
    done: jax.Array  # (X,)
    logits: jax.Array  # (X, V), of the next token
    own: list[Cache]  # by layer, keys and values of the sampled tokens


def sample(
    model: Model,
    params,
    prompts_BP: jax.Array,
    length_B: jax.Array,
    ids_B: jax.Array,
    key: jax.Array,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    eos_id: int,
    first_B: jax.Array | int = 0,
    begun: int = 0,
) -> Samples:
    """Draw `samples` responses per prompt; runs under `jit`, with everything after `key` static.

    The randomness of a response is a pure function of (key, example id, sample index, position): it does not depend on
    the batch an example is in, its padding, or the number of devices. A response can be drawn in parts.

    Args:
      params: of `unstack`; stacked layers will do, and are taken from their stack first.
      prompts_BP: right-padded prompt tokens.
      length_B: tokens in each prompt, at least 1.
      ids_B: example ids; below 0 where there is none, and nothing is drawn.
      key: random key of the evaluation.
      temperature: 0 takes the likeliest token.
      top_p: nucleus mass (Holtzman et al., arXiv 1904.09751); 1 samples the full distribution.
      eos_id: the stop marker.
      first_B: index of each prompt's first sample.
      begun: tokens at the end of each prompt that are of the response.
    """
    decoder = model.bind(params)
    (B, P), R, T = prompts_BP.shape, samples, max_new_tokens
    X = B * R
    hidden, prompt = decoder(prompts_BP)
    last_BD = jnp.take_along_axis(hidden, (length_B - 1)[:, None, None], axis=1)[:, 0]
    prompt_mask = jnp.arange(P) < length_B[:, None]
    length_X = jnp.repeat(length_B, R)
    keys_X = sample_keys(key, ids_B, first_B, R).reshape(X)

    def choose(logits_XV, step):
        if temperature == 0:
            return jnp.argmax(logits_XV, axis=-1)
        probability_XV = jax.nn.softmax(logits_XV / temperature, axis=-1)
        if top_p < 1:
            probability_XV = nucleus(probability_XV, top_p)
        return draw(jax.vmap(jax.random.fold_in, (0, None))(keys_X, step), probability_XV)

    def body(state: _State) -> _State:
        token = choose(state.logits, begun + state.step).astype(jnp.int32)
        done = state.done | (token == eos_id)
        token = jnp.where(done, 0, token)
        tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step))
        hidden, own = decoder.decode(token, length_X + state.step, prompt, prompt_mask, state.own, state.step)
        return _State(state.step + 1, tokens, state.length + ~done, done, decoder.logits(hidden), own)

    state = _State(
        step=jnp.int32(0),
        tokens=jnp.zeros((X, T), jnp.int32),
        length=jnp.zeros((X,), jnp.int32),
        done=jnp.repeat(ids_B < 0, R),
        logits=jnp.repeat(decoder.logits(last_BD), R, axis=0),
        own=[cache.empty(X, T) for cache in prompt],
    )
    state = jax.lax.while_loop(lambda s: (s.step < T) & ~jnp.all(s.done), body, state)
    return Samples(state.tokens.reshape(B, R, T), state.length.reshape(B, R))


def sample_keys(key: jax.Array, ids_B: jax.Array, first_B: jax.Array | int, samples: int) -> jax.Array:
    """Random keys (B, R), one for each sample from the first on: a function of the example's id, not of its place."""
    index_BR = jnp.broadcast_to(first_B, ids_B.shape)[:, None] + jnp.arange(samples)
    of_sample = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda i, index_R: of_sample(jax.random.fold_in(key, i), index_R))(ids_B, index_BR)


def nucleus(probability_XV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Probabilities with all outside the smallest set of mass `top_p` at 0; equally likely tokens stay or go together.

    A token stays if those likelier than it hold less than `top_p`. The least such probability is found by bisecting
    over the bits of floats, which order like the numbers: 31 sums over V in the place of a sort.
    """
    bits = jax.lax.bitcast_convert_type(probability_XV, jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        likelier = jnp.sum(jnp.where(bits > middle, probability_XV, 0), axis=-1, keepdims=True)
        stays = likelier < top_p
        return jnp.where(stays, low, middle), jnp.where(stays, middle, high)

    rows = (*probability_XV.shape[:-1], 1)
    one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    _, least = jax.lax.fori_loop(0, 31, halve, (jnp.full(rows, -1, jnp.int32), jnp.full(rows, one)))
    return jnp.where(bits < least, 0, probability_XV)


def draw(keys_X: jax.Array, weight_XV: jax.Array) -> jax.Array:
    """One token of each row (X,), with probabilities in proportion to its weights, of which one must be positive.

    First a block of the vocabulary is drawn, then a token of the block: two random numbers per row, where Gumbel noise
    (`jax.random.categorical`) takes one per token, which cost as much as a sixth of the decoder. The blocks are a power
    of two, about sqrt(V): a vocabulary that is cut along `tensor` is cut between blocks, and its weights stay where
    they are.
    """
    X, V = weight_XV.shape
    count = 1 << (math.isqrt(V).bit_length() - 1)
    blocks = jnp.pad(weight_XV, [(0, 0), (0, -V % count)]).reshape(X, count, -1)
    size = blocks.shape[2]
    uniform_X2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_X)

    def invert(weights, uniform_X):
        upto = jnp.cumsum(weights, axis=-1)
        return jnp.argmax(upto > uniform_X[:, None] * upto[:, -1:], axis=-1)

    block_X = invert(jnp.sum(blocks, axis=-1), uniform_X2[:, 0])
    chosen = jnp.take_along_axis(blocks, block_X[:, None, None], axis=1)[:, 0]
    return block_X * size + invert(chosen, uniform_X2[:, 1])
