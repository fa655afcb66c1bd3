"""Confidence: log-probability of the greedy response."""

import jax
import jax.numpy as jnp

from premem_jax.models.decoder import Model
from premem_jax.models.nll import token_nll
from premem_jax.sampling.sampler import sample


def greedy_log_confidence(
    model: Model, params, prompts_BP, length_B, ids_B, key, *, max_new_tokens: int, eos_ids: tuple[int, ...]
) -> jax.Array:
    """Log-probability in nats (B,) of the greedy response to each prompt, including its stop marker if it ended.

    NaN where the logits are not finite. A second forward pass scores the response, so the decode loop costs no more.
    """
    settings = dict(samples=1, max_new_tokens=max_new_tokens, temperature=0.0, top_p=1.0, eos_ids=eos_ids)
    drawn = sample(model, params, prompts_BP, length_B, ids_B, key, **settings)
    response_BT, end_B1 = drawn.tokens[:, 0], drawn.length
    T = max_new_tokens
    text_BS = jnp.pad(prompts_BP, [(0, 0), (0, T)])
    place_BS = jnp.arange(text_BS.shape[1]) - length_B[:, None]  # in the response
    response_BT = jnp.where(jnp.arange(T) == end_B1, drawn.stop, response_BT)
    own_BS = jnp.take_along_axis(response_BT, jnp.clip(place_BS, 0, T - 1), axis=1)
    counts_BS = (place_BS >= 0) & (place_BS <= end_B1) & (place_BS < T)
    nll_BS = token_nll(model, params, jnp.where(counts_BS, own_BS, text_BS))
    log_confidence_B = -jnp.sum(jnp.where(counts_BS, nll_BS, 0), axis=1)
    return jnp.where(end_B1[:, 0] < 0, jnp.nan, log_confidence_B)  # there was no greedy response
