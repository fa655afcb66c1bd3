"""Grouped-query attention in plain JAX: the reference backend of `backends.py`, and the decode step."""

from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 128  # queries whose logits exist at a time
REACH = 2 * BLOCK  # slots before a block, beyond which few segments reach back
NEGATIVE = -1e30  # finite, so that a fully masked row yields a uniform distribution and not NaN


def causal_mask(T: int, window: int | None = None) -> jax.Array:
    """(1, T, T) boolean mask: query t sees keys t - window + 1 to t; without a window, keys 0 to t."""
    slot_T = jnp.arange(T)
    before = slot_T <= slot_T[:, None]
    return (before & within(slot_T[:, None], slot_T, window))[None]


def within(query: jax.Array, key: jax.Array, window: int | None) -> jax.Array | bool:
    """Whether the window of a query, its own token included, reaches back to a key at an earlier position."""
    return True if window is None else query - key < window


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """`x` squeezed into (-cap, cap), nearly unchanged around 0 (Gemma Team, arXiv 2408.00118, section 2)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array, *, scale: float, cap: float | None
) -> jax.Array:
    """Softmax attention with shared key/value heads; logits and softmax in fp32.

    Queries that share a key/value head are rows of one matrix, because otherwise XLA's CPU backend takes twice as long.

    Args:
      q_BTNH: queries, N = K * G heads, query head n uses key head n // G.
      k_BKSH, v_BKSH: keys and values, heads before slots.
      mask_BTS: True where a query may attend; B may be 1.
      scale: factor of the logits.
      cap: soft-cap of the scaled logits.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    G = N // K
    q_BKQH = (q_BTNH * scale).swapaxes(1, 2).reshape(B, K, G * T, H)
    logits = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, K, G, T, -1)
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], softcap(logits, cap), NEGATIVE), axis=-1)
    weights = weights.astype(v_BKSH.dtype).reshape(B, K, G * T, -1)
    return jnp.einsum("BKQS,BKSH->BKQH", weights, v_BKSH).reshape(B, N, T, H).swapaxes(1, 2)


def attend_causally(
    q_BTNH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segments_BT: jax.Array | None = None,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
) -> jax.Array:
    """Causal self-attention: `attend` in blocks of queries, each with only the keys that the block can see.

    With `segments_BT`, a query sees the keys of its own segment, which is one stretch of a row. Keys more than REACH
    before a block are left out where no segment reaches back so far, in any row.
    """
    T, blocks = q_BTNH.shape[1], []
    mask_TT = causal_mask(T, window)

    def block(start: int, stop: int, first: int) -> jax.Array:
        k, v = k_BKTH[:, :, first:stop], v_BKTH[:, :, first:stop]
        mask = mask_TT[:, start:stop, first:stop]
        if segments_BT is not None:
            mask &= segments_BT[:, start:stop, None] == segments_BT[:, None, first:stop]
        return attend(q_BTNH[:, start:stop], k, v, mask, scale=scale, cap=cap)

    for start in range(0, T, BLOCK):
        stop, first = min(start + BLOCK, T), 0 if window is None else max(0, start - window + 1)
        whole, near = partial(block, start, stop, first), partial(block, start, stop, start - REACH)
        if segments_BT is None or start - REACH <= first:
            blocks.append(whole())
        else:
            reaches = jnp.any(segments_BT[:, start] == segments_BT[:, start - REACH - 1])
            blocks.append(jax.lax.cond(reaches, whole, near))
    return jnp.concatenate(blocks, axis=1)


def attend_with_prompt(
    q_XNH: jax.Array,
    prompt: tuple,
    prompt_mask_BRP: jax.Array,
    own: tuple,
    own_mask_T: jax.Array,
    *,
    scale: float,
    cap: float | None,
) -> jax.Array:
    """Attention of one new token per sample; the R samples of a prompt share its keys and values.

    Equals `attend` on the prompt's slots followed by the sample's own, without R copies of the prompt.

    Args:
      q_XNH: queries, X = B * R with the samples of a prompt next to each other.
      prompt: keys (B, K, H, P) and values (B, K, P, H).
      prompt_mask_BRP: True at the prompt's tokens that a sample may attend to; R may be 1.
      own: keys (X, K, H, T) and values (X, K, T, H) of the tokens sampled so far.
      own_mask_T: True at the slots to attend to.
      scale, cap: as in `attend`.

    Returns:
      (X, N, H) in the dtype of `q_XNH`.
    """
    (X, N, H), (B, K) = q_XNH.shape, prompt[0].shape[:2]
    R, G = X // B, N // K
    q_XKGH = (q_XNH * scale).reshape(X, K, G, H)
    q_BKRGH = q_XKGH.reshape(B, R, K, G, H).swapaxes(1, 2)
    fp32 = dict(preferred_element_type=jnp.float32)
    of_prompt = softcap(jnp.einsum("BKRGH,BKHP->BKRGP", q_BKRGH, prompt[0], **fp32), cap)
    of_prompt = jnp.where(prompt_mask_BRP[:, None, :, None], of_prompt, NEGATIVE)
    of_own = softcap(jnp.einsum("XKGH,XKHT->XKGT", q_XKGH, own[0], **fp32), cap)
    of_own = jnp.where(own_mask_T, of_own, NEGATIVE)
    # A softmax over both without concatenating them, which would copy the prompt's logits into the order of X.
    by_row = lambda x_BKRG: x_BKRG.swapaxes(1, 2).reshape(X, K, G, *x_BKRG.shape[4:])
    peak_XKG = jnp.maximum(by_row(jnp.max(of_prompt, axis=-1)), jnp.max(of_own, axis=-1))
    peak_BKRG = peak_XKG.reshape(B, R, K, G).swapaxes(1, 2)
    to_prompt, to_own = jnp.exp(of_prompt - peak_BKRG[..., None]), jnp.exp(of_own - peak_XKG[..., None])
    total_XKG = by_row(jnp.sum(to_prompt, axis=-1)) + jnp.sum(to_own, axis=-1)
    values = prompt[1].dtype
    out = by_row(jnp.einsum("BKRGP,BKPH->BKRGH", to_prompt.astype(values), prompt[1], **fp32))
    out += jnp.einsum("XKGT,XKTH->XKGH", to_own.astype(values), own[1], **fp32)
    return (out / total_XKG[..., None]).astype(q_XNH.dtype).reshape(X, N, H)
