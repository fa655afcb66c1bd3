"""Rotary positions (Su et al., arXiv 2104.09864) in the half-split layout of released checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.models.architecture import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians per position of each of the H / 2 pairs of entries, fp32.

    Computed in fp32 in the same order as the released code: at position 8192, one rounding of a frequency is 5e-4 rad.
    """
    exponent = np.arange(0, config.H, 2, dtype=np.float32) / np.float32(config.H)
    frequency = np.float32(1) / np.float32(config.rope_theta) ** exponent
    return frequency if config.rope_scaling is None else _stretch(frequency, config.rope_scaling)


def _stretch(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama-3.1's rule: divides slow frequencies by `factor`, keeps fast ones, interpolates between.

    Source: `apply_scaling` in Meta's llama-models, and `_compute_llama3_parameters` in `transformers`.
    """
    wavelength = np.float32(2 * np.pi) / frequency
    turns = np.float32(scaling.original_context) / wavelength  # in the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1).astype(np.float32)
    return (1 - kept) * frequency / np.float32(scaling.factor) + kept * frequency


def rotary(x: jax.Array, positions: jax.Array, frequency: np.ndarray) -> jax.Array:
    """Rotates `x` (..., H) by its positions, integers that broadcast against the leading axes of `x`."""
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)
