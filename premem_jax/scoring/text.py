"""Short texts as arrays, and the few operations on them that rewriting needs: find, delete, insert.

Positions are the first axis and texts the last, so that a shift moves whole rows: on CPU that is some thirty times
faster than the other way round. What is sequential by nature is a scan over positions, the rest a loop of seven shifts:
no sort, no scatter, little to compile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Bytes per text, a power of two of at most 256, since counts within a text are kept in 8 bits. Of MATH's 12,500 answers
# the longest has 159 bytes and three have over 126, the most that a box may hold here.
WIDTH = 128
POSITION_A1 = np.arange(WIDTH, dtype=np.int32)[:, None]
_STEPS = WIDTH.bit_length() - 1  # bits of a position


class Text(NamedTuple):
    """bytes_AB uint8, zero from the length on, with A = WIDTH; length_B int32."""

    bytes_AB: jax.Array
    length_B: jax.Array

    @property
    def inside_AB(self) -> jax.Array:
        """Which positions hold a byte of the text."""
        return self.length_B > POSITION_A1


def ahead(x_AB: jax.Array, by: int | jax.Array) -> jax.Array:
    """What stands `by` positions further on, at most half the width; zero behind the end."""
    if isinstance(by, int):
        return jnp.concatenate([x_AB[by:], jnp.zeros_like(x_AB[:by])])
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([x_AB, jnp.zeros_like(x_AB[: WIDTH // 2])]), by, WIDTH)


def behind(x_AB: jax.Array, by: int | jax.Array) -> jax.Array:
    """What stands `by` positions before, at most half the width; zero before the start."""
    if isinstance(by, int):
        return jnp.concatenate([jnp.zeros_like(x_AB[:by]), x_AB[: WIDTH - by]])
    half = WIDTH // 2
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([jnp.zeros_like(x_AB[:half]), x_AB]), half - by, WIDTH)


def running_sum(x_AB: jax.Array) -> jax.Array:
    """Inclusive sums over the positions, in the type of x."""
    return jax.lax.fori_loop(0, _STEPS, lambda k, x_AB: x_AB + behind(x_AB, 1 << k), x_AB)


def hold(x_AB: jax.Array) -> jax.Array:
    """Each zero replaced by the nearest number before it that is none."""
    return jax.lax.fori_loop(0, _STEPS, lambda k, x_AB: jnp.where(x_AB == 0, behind(x_AB, 1 << k), x_AB), x_AB)


def starts(text: Text, pattern: bytes) -> jax.Array:
    """Where the pattern, which holds no zero byte, begins. Overlapping matches are all marked."""
    found_AB = text.bytes_AB == pattern[0]
    for k, byte in enumerate(pattern[1:], 1):
        found_AB &= ahead(text.bytes_AB, k) == byte
    return found_AB


def first(mark_AB: jax.Array) -> jax.Array:
    """Position of the first mark; WIDTH where there is none."""
    return jnp.min(jnp.where(mark_AB, POSITION_A1, WIDTH), axis=0)


def count(mark_AB: jax.Array) -> jax.Array:
    """Number of marks."""
    return jnp.sum(mark_AB, axis=0, dtype=jnp.int32)


def delete(text: Text, gone_AB: jax.Array) -> Text:
    """The text without the marked bytes. Each byte moves left by the bits of its distance, the smallest bit first."""
    keep_AB = text.inside_AB & ~gone_AB
    away_AB = running_sum((~keep_AB).astype(jnp.uint8)).astype(jnp.uint16)
    packed_AB = jnp.where(keep_AB, text.bytes_AB | away_AB << 8, 0).astype(jnp.uint16)

    def move(k, packed_AB):
        moves = lambda x_AB: (x_AB >> (8 + k).astype(jnp.uint16)) & 1 > 0
        comes_AB = ahead(packed_AB, 1 << k)
        return jnp.where(moves(comes_AB), comes_AB, jnp.where(moves(packed_AB), 0, packed_AB))

    return Text(jax.lax.fori_loop(0, _STEPS, move, packed_AB).astype(jnp.uint8), count(keep_AB))


def insert(text: Text, outer_AB: jax.Array, inner_AB: jax.Array) -> tuple[Text, jax.Array]:
    """The text with up to two bytes put before each position, and whether it became too long to be one.

    `outer_AB`, `inner_AB` uint8 hold those bytes, 0 for none; inner stands next to the position, and no outer goes
    without one. The position behind the last byte counts too, so the text must be shorter than WIDTH, as the result is.
    """
    number_AB = (inner_AB > 0).astype(jnp.uint16) + (outer_AB > 0)
    away_AB = jnp.minimum(running_sum(number_AB), WIDTH - 1)
    length_B = text.length_B + jnp.sum(number_AB, axis=0, dtype=jnp.int32)
    parts = (text.bytes_AB, inner_AB, outer_AB, away_AB)
    packed_AB = sum(part.astype(jnp.uint32) << 8 * i for i, part in enumerate(parts))
    packed_AB = jnp.where(text.length_B >= POSITION_A1, packed_AB, 0)

    def move(step, packed_AB):
        k = _STEPS - 1 - step
        moves = lambda x_AB: (x_AB >> (24 + k).astype(jnp.uint32)) & 1 > 0
        comes_AB = behind(packed_AB, 1 << k)
        return jnp.where(moves(comes_AB), comes_AB, jnp.where(moves(packed_AB), 0, packed_AB))

    packed_AB = jax.lax.fori_loop(0, _STEPS, move, packed_AB)
    # The gaps that the inserted bytes fall into are zero.
    bytes_AB = packed_AB | ahead(packed_AB, 1) >> 8 | ahead(packed_AB, 2) >> 16
    return Text(bytes_AB.astype(jnp.uint8), jnp.minimum(length_B, WIDTH - 1)), length_B >= WIDTH
