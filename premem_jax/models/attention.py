"""Grouped-query attention behind one function, so that backends can be chosen in one place."""

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # finite, so that a fully masked row yields a uniform distribution and not NaN


def causal_mask(T: int) -> jax.Array:
    """(1, T, T) boolean mask: query t sees keys 0..t."""
    return jnp.tril(jnp.ones((T, T), bool))[None]


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Softmax attention with shared key/value heads; logits and softmax in fp32.

    Args:
      q_BTNH: queries, N = K * G heads, query head n uses key head n // G.
      k_BSKH, v_BSKH: keys and values.
      mask_BTS: True where a query may look; B may be 1.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], logits, NEGATIVE), axis=-1)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v_BSKH.dtype), v_BSKH)
    return out.reshape(B, T, N, H)


def rotary(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotary positions in the half-split layout that released Llama checkpoints use (Su et al., arXiv 2104.09864)."""
    half = x_BTNH.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x_BTNH.dtype)
