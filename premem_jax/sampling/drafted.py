"""Reference-drafted sampling: one forward pass over prompt and reference decides how far each response follows it.

As long as a response says what its reference says, the logits of its next token are those of that pass. So the token at
every position of the reference is drawn there, with the response's own randomness, and the first that differs is where
the response leaves. All before it is the beginning of an exact sample, and only what comes after it is decoded. This is
speculative sampling (Leviathan et al., arXiv 2211.17192) whose draft is certain of one token, so that a token is drawn
and compared and nothing is rejected; the reference as a draft is of Yang et al., arXiv 2304.04487.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from premem_jax.models.decoder import Model
from premem_jax.sampling.sampler import check, choose, sample_keys

POSITIONS = 8  # of a reference, whose logits exist at a time


class Followed(NamedTuple):
    """`kept` (B, R): tokens of the reference with which a response begins; `ended` (B, R): whether it ends there.

    Others differ from the reference in the next token, or go on behind its end.
    """

    kept: jax.Array
    ended: jax.Array


def follow(
    model: Model,
    params,
    tokens_BP: jax.Array,
    length_B: jax.Array,
    reference_B: jax.Array,
    ids_B: jax.Array,
    key: jax.Array,
    *,
    samples: int,
    longest: int,
    temperature: float,
    top_p: float,
    eos_ids: tuple[int, ...],
) -> Followed:
    """How far each of `samples` responses per prompt, drawn as `sample` draws them, follows the reference.

    Logits of a few positions exist at a time, and no more are computed once every response has left.

    Args:
      params, ids_B, key, temperature, top_p, eos_ids: as in `sample`.
      tokens_BP: right-padded: the prompt, then the reference with its stop marker.
      length_B, reference_B: tokens of prompts and references.
      longest: most tokens of a response.

    Raises:
      ValueError: temperature or nucleus out of range.
    """
    check(temperature, top_p)
    decoder = model.bind(params)
    (B, P), R, C = tokens_BP.shape, samples, POSITIONS
    hidden, _ = decoder(tokens_BP)
    keys_BR, end_B1 = sample_keys(key, ids_B, 0, R), jnp.minimum(reference_B, longest)[:, None]
    at_each = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))  # of (R,) keys and (C,) positions

    def body(state):
        start, kept_BR, ended_BR, follows_BR = state
        position_C = start + jnp.arange(C)
        place_BC = length_B[:, None] + position_C
        before_BCD = jnp.take_along_axis(hidden, jnp.minimum(place_BC - 1, P - 1)[..., None], axis=1)
        keys_BCR = jax.vmap(at_each, (0, None))(keys_BR, position_C)
        logits = decoder.logits(before_BCD.reshape(B * C, -1))
        drawn_BCR = choose(logits, keys_BCR.reshape(B * C, R), temperature, top_p).reshape(B, C, R)
        reference_BC = jnp.take_along_axis(tokens_BP, jnp.minimum(place_BC, P - 1), axis=1)
        over_BC1 = (position_C >= end_B1)[..., None]
        stops_BCR = jnp.isin(drawn_BCR, jnp.array(eos_ids, jnp.int32)) & ~over_BC1
        leaves_BCR = (drawn_BCR != reference_BC[..., None]) | stops_BCR | over_BC1
        first_BR = jnp.argmax(leaves_BCR, axis=1)
        now_BR = follows_BR & jnp.any(leaves_BCR, axis=1)
        stops_BR = jnp.take_along_axis(stops_BCR, first_BR[:, None], axis=1)[:, 0]
        kept_BR = jnp.where(now_BR, start + first_BR, kept_BR)
        ended_BR = jnp.where(now_BR, stops_BR | (kept_BR == longest), ended_BR)
        return start + C, kept_BR, ended_BR, follows_BR & ~now_BR

    nothing = jnp.zeros((B, R), jnp.int32)
    state = jnp.int32(0), nothing, nothing > 0, jnp.broadcast_to((ids_B >= 0)[:, None], (B, R))
    _, kept_BR, ended_BR, _ = jax.lax.while_loop(lambda state: jnp.any(state[3]), body, state)
    return Followed(kept_BR, ended_BR)
