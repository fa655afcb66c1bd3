"""Grouped-query attention behind one function, so that backends can be chosen in one place."""

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # finite, so that a fully masked row yields a uniform distribution and not NaN


def causal_mask(T: int) -> jax.Array:
    """(1, T, T) boolean mask: query t sees keys 0..t."""
    return jnp.tril(jnp.ones((T, T), bool))[None]


def attend(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Softmax attention with shared key/value heads; logits and softmax in fp32.

    Args:
      q_BTNH: queries, N = K * G heads, query head n uses key head n // G.
      k_BKSH, v_BKSH: keys and values; heads before slots, so that decoding needs no transpose.
      mask_BTS: True where a query may look; B may be 1.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    logits = jnp.einsum("BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], logits, NEGATIVE), axis=-1)
    out = jnp.einsum("BKGTS,BKSH->BTKGH", weights.astype(v_BKSH.dtype), v_BKSH)
    return out.reshape(B, T, N, H)


def attend_with_prompt(
    q_XNH: jax.Array, prompt: tuple, prompt_mask_BP: jax.Array, own: tuple, own_mask_T: jax.Array
) -> jax.Array:
    """Attention of one new token per sample, where the R samples of a prompt share its keys and values.

    Same result as `attend` on the prompt's slots followed by the sample's own, without repeating the prompt R times.

    Args:
      q_XNH: queries, X = B * R with the samples of a prompt next to each other.
      prompt: keys and values (B, K, P, H) each.
      prompt_mask_BP: True at the prompt's tokens.
      own: keys and values (X, K, T, H) each, of the tokens sampled so far.
      own_mask_T: True at the slots in use.

    Returns:
      (X, N, H) in the dtype of `q_XNH`.
    """
    (X, N, H), (B, K, P, _) = q_XNH.shape, prompt[0].shape
    R, G = X // B, N // K
    q_XNH = q_XNH * H**-0.5
    q_BKRGH = q_XNH.reshape(B, R, K, G, H).swapaxes(1, 2)
    of_prompt = jnp.einsum("BKRGH,BKPH->BKRGP", q_BKRGH, prompt[0], preferred_element_type=jnp.float32)
    of_own = jnp.einsum("XKGH,XKTH->XKGT", q_XNH.reshape(X, K, G, H), own[0], preferred_element_type=jnp.float32)
    of_prompt = jnp.where(prompt_mask_BP[:, None, None, None], of_prompt, NEGATIVE).swapaxes(1, 2).reshape(X, K, G, P)
    of_own = jnp.where(own_mask_T, of_own, NEGATIVE)
    weights = jax.nn.softmax(jnp.concatenate([of_prompt, of_own], axis=-1), axis=-1).astype(q_XNH.dtype)
    to_prompt = weights[..., :P].reshape(B, R, K, G, P).swapaxes(1, 2)
    out = jnp.einsum("BKRGP,BKPH->BKRGH", to_prompt, prompt[1]).swapaxes(1, 2).reshape(X, N, H)
    return out + jnp.einsum("XKGT,XKTH->XKGH", weights[..., P:], own[1]).reshape(X, N, H)


def rotary(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary positions in the half-split layout that released Llama checkpoints use (Su et al., arXiv 2104.09864).

    Args:
      x: (..., H).
      positions: integers that broadcast against the leading axes of `x`.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)
