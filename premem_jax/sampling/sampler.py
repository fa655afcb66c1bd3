"""Sampling: each prompt is prefilled once, fanned out to R samples, and decoded in one compiled loop."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from premem_jax.models.decoder import Cache, Model, unstack

NOTHING = -2  # the token of a row that has none; no stop marker equals it
LOWEST_TEMPERATURE = 1e-6  # by which any logit can be divided and stay finite


class Samples(NamedTuple):
    """`tokens` (B, R, T) without the stop marker, zero after the end; `length` (B, R) tokens before the end.

    `stop` (B, R) is the sampled stop marker, or 0 if the response did not end. A length of -1 means that the logits
    were not finite.
    """

    tokens: jax.Array
    length: jax.Array
    stop: jax.Array


class _State(NamedTuple):
    step: jax.Array
    tokens: jax.Array  # (X, T), X = B * R
    length: jax.Array  # (X,)
    done: jax.Array  # (X,)
    stop: jax.Array  # (X,)
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
    eos_ids: tuple[int, ...],
    longest: int | None = None,
    first_B: jax.Array | int = 0,
    begun_BR: jax.Array | int = 0,
) -> Samples:
    """Samples `samples` responses per prompt. Runs under `jit`; of what is after `key`, arrays alone are not static.

    The randomness of a response is a pure function of (key, example id, sample index, position). It does not depend on
    batch, padding or number of devices. A response can be sampled in several rounds, and go on from any token.

    Args:
      params: from `unstack`; stacked layers are unstacked first.
      prompts_BP: prompt tokens, then tokens with which its responses may begin, then padding.
      length_B: tokens of each prompt, at least 1.
      ids_B: example ids; negative for padding rows, which are not sampled.
      key: random key of the evaluation.
      temperature: 0 is greedy.
      top_p: nucleus mass (Holtzman et al., arXiv 1904.09751); 1 samples the full distribution.
      eos_ids: stop markers; a response ends at the first of any of them.
      longest: most tokens of a response, of all rounds together; by default only `max_new_tokens` limits it.
      first_B: sample index of each prompt's first sample.
      begun_BR: number of tokens behind the prompt with which the response begins.

    Raises:
      ValueError: temperature or nucleus out of range.
    """
    check(temperature, top_p)
    decoder = model.bind(params)
    (B, P), R, T = prompts_BP.shape, samples, max_new_tokens
    X = B * R
    hidden, prompt = decoder(prompts_BP)
    begun_BR = jnp.broadcast_to(begun_BR, (B, R))
    kept_BR = length_B[:, None] + begun_BR  # of the prompt's row
    last_BRD = jnp.take_along_axis(hidden, (kept_BR - 1)[..., None], axis=1)
    prompt_mask_BRP = jnp.arange(P) < kept_BR[..., None]
    begun_X, kept_X = begun_BR.reshape(X), kept_BR.reshape(X)
    keys_X = sample_keys(key, ids_B, first_B, R).reshape(X)
    room_X = (begun_X + T if longest is None else longest) - begun_X

    def body(state: _State) -> _State:
        keys_X1 = jax.vmap(jax.random.fold_in)(keys_X, begun_X + state.step)[:, None]
        token = choose(state.logits, keys_X1, temperature, top_p)[:, 0]
        ends = ~state.done & jnp.isin(token, jnp.array(eos_ids, jnp.int32))
        stop = jnp.where(ends, token, state.stop)
        failed = ~state.done & (token == NOTHING)
        done = state.done | ends | failed
        token = jnp.where(done, 0, token)
        tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step))
        hidden, own = decoder.decode(token, kept_X + state.step, prompt, prompt_mask_BRP, state.own, state.step)
        length = jnp.where(failed, -1, state.length + ~done)
        return _State(state.step + 1, tokens, length, done | (length == room_X), stop, decoder.logits(hidden), own)

    state = _State(
        step=jnp.int32(0),
        tokens=jnp.zeros((X, T), jnp.int32),
        length=jnp.zeros((X,), jnp.int32),
        done=jnp.repeat(ids_B < 0, R) | (room_X <= 0),
        stop=jnp.zeros((X,), jnp.int32),
        logits=decoder.logits(last_BRD.reshape(X, -1)),
        own=[cache.empty(X, T) for cache in prompt],
    )
    state = jax.lax.while_loop(lambda s: (s.step < T) & ~jnp.all(s.done), body, state)
    return Samples(state.tokens.reshape(B, R, T), state.length.reshape(B, R), state.stop.reshape(B, R))


def to_decode(dtype, params):
    """Parameters for decoding many tokens: cast to `dtype`, with unstacked layers."""
    return jax.tree.map(lambda x: x.astype(dtype), unstack(params))


def check(temperature: float, top_p: float) -> None:
    """Raises ValueError for a temperature or nucleus out of range."""
    if not (temperature == 0 or LOWEST_TEMPERATURE <= temperature < math.inf):
        raise ValueError(f"temperature={temperature}: must be 0 or at least {LOWEST_TEMPERATURE}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")


def choose(logits_XV: jax.Array, keys_XR: jax.Array, temperature: float, top_p: float) -> jax.Array:
    """Independent draws (X, R) of the token after each row, one per key; `NOTHING` from logits that are not finite.

    A draw depends on its row and key alone. The draws from a row share everything that takes a pass over V.
    """
    if temperature == 0:
        return jnp.broadcast_to(likeliest(logits_XV)[:, None], keys_XR.shape)
    probability_XV = jax.nn.softmax(logits_XV / temperature, axis=-1)
    if top_p < 1:
        probability_XV = nucleus(probability_XV, top_p)
    return draw(keys_XR, probability_XV)


def sample_keys(key: jax.Array, ids_B: jax.Array, first_B: jax.Array | int, samples: int) -> jax.Array:
    """Random keys (B, R), one per sample: a function of example id and sample index, not of the batch row."""
    index_BR = jnp.broadcast_to(first_B, ids_B.shape)[:, None] + jnp.arange(samples)
    of_sample = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda i, index_R: of_sample(jax.random.fold_in(key, i), index_R))(ids_B, index_BR)


def nucleus(probability_XV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Sets probabilities outside the nucleus of mass `top_p` to 0. Equally likely tokens are kept or dropped together.

    A token is kept if all likelier tokens together have mass below `top_p`. The smallest kept probability is found by
    bisection over the bits of floats, which are ordered like the numbers: 31 sums over V instead of a sort.
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


def likeliest(logits_XV: jax.Array) -> jax.Array:
    """The token with the highest logit of each row (X,); `NOTHING` if that logit is not finite."""
    token_X = jnp.argmax(logits_XV, axis=-1)  # of a NaN where there is one
    highest_X = jnp.take_along_axis(logits_XV, token_X[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.isfinite(highest_X), token_X, NOTHING).astype(jnp.int32)


def draw(keys_XR: jax.Array, weight_XV: jax.Array) -> jax.Array:
    """Samples tokens (X, R) in proportion to the weights of each row; `NOTHING` if their sum is 0 or not finite.

    Samples a block of the vocabulary, then a token of the block. This takes two random numbers per token. Gumbel noise
    (`jax.random.categorical`) takes one per vocabulary entry, which cost a sixth of the decoder's time. The number of
    blocks is a power of two near sqrt(V), so a vocabulary sharded along `tensor` is split between blocks and its
    weights are not moved.
    """
    X, V = weight_XV.shape
    count = 1 << (math.isqrt(V).bit_length() - 1)
    blocks = jnp.pad(weight_XV, [(0, 0), (0, -V % count)]).reshape(X, count, -1)
    size = blocks.shape[2]
    uniform_XR2 = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys_XR)

    def invert(weights, uniform_XR):
        upto = jnp.cumsum(weights, axis=-1)
        return jnp.argmax(upto > uniform_XR[..., None] * upto[..., -1:], axis=-1), upto[..., -1]

    block_XR, total_X1 = invert(jnp.sum(blocks, axis=-1)[:, None], uniform_XR2[..., 0])
    chosen = jnp.take_along_axis(blocks, block_XR[..., None], axis=1)
    token_XR = block_XR * size + invert(chosen, uniform_XR2[..., 1])[0]
    return jnp.where((total_X1 > 0) & (total_X1 < jnp.inf), token_XR, NOTHING).astype(jnp.int32)
