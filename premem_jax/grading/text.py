"""Short texts as arrays, and the few operations on them that rewriting needs: find, delete, insert.

Positions are the first axis and texts the last, so that a shift moves whole rows; on CPU this is about thirty times
faster than the reverse. Sequential operations are scans over positions, the others loops of seven shifts: no sort, no
scatter, little to compile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Bytes per text: a power of two, at most 256, because counts within a text have 8 bits. Of MATH's 12,500 answers, the
# longest has 159 bytes, and three exceed 126, the limit for a box here.
WIDTH = 128
POSITION_A1 = np.arange(WIDTH, dtype=np.int32)[:, None]
_STEPS = WIDTH.bit_length() - 1  # bits of a position


class Text(NamedTuple):
    """bytes_AB uint8, zero from the length on, with A = WIDTH; length_B int32."""

    bytes_AB: jax.Array
    length_B: jax.Array

    @property
    def inside_AB(self) -> jax.Array:
        """Marks the positions of the text's bytes."""
        return self.length_B > POSITION_A1


def ahead(x_AB: jax.Array, by: int | jax.Array) -> jax.Array:
    """The values `by` positions later, at most half the width; zero after the end."""
    if isinstance(by, int):
        return jnp.concatenate([x_AB[by:], jnp.zeros_like(x_AB[:by])])
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([x_AB, jnp.zeros_like(x_AB[: WIDTH // 2])]), by, WIDTH)


def behind(x_AB: jax.Array, by: int | jax.Array) -> jax.Array:
    """The values `by` positions earlier, at most half the width; zero before the start."""
    if isinstance(by, int):
        return jnp.concatenate([jnp.zeros_like(x_AB[:by]), x_AB[: WIDTH - by]])
    half = WIDTH // 2
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([jnp.zeros_like(x_AB[:half]), x_AB]), half - by, WIDTH)


def running_sum(x_AB: jax.Array) -> jax.Array:
    """Inclusive running sums over the positions, in the dtype of x."""
    return jax.lax.fori_loop(0, _STEPS, lambda k, x_AB: x_AB + behind(x_AB, 1 << k), x_AB)


def hold(x_AB: jax.Array) -> jax.Array:
    """Replaces each zero by the nearest nonzero number before it."""
    return jax.lax.fori_loop(0, _STEPS, lambda k, x_AB: jnp.where(x_AB == 0, behind(x_AB, 1 << k), x_AB), x_AB)


def starts(text: Text, pattern: bytes) -> jax.Array:
    """Marks where a pattern without zero bytes begins. Overlapping matches are all marked."""
    found_AB = text.bytes_AB == pattern[0]
    for k, byte in enumerate(pattern[1:], 1):
        found_AB &= ahead(text.bytes_AB, k) == byte
    return found_AB


def first(mark_AB: jax.Array) -> jax.Array:
    """Position of the first mark; WIDTH if there is none."""
    return jnp.min(jnp.where(mark_AB, POSITION_A1, WIDTH), axis=0)


def count(mark_AB: jax.Array) -> jax.Array:
    """Number of marks."""
    return jnp.sum(mark_AB, axis=0, dtype=jnp.int32)


def delete(text: Text, gone_AB: jax.Array) -> Text:
    """Deletes the marked bytes. Each byte moves left by its distance, bit by bit, the smallest bit first."""
    keep_AB = text.inside_AB & ~gone_AB
    away_AB = running_sum((~keep_AB).astype(jnp.uint8)).astype(jnp.uint16)
    packed_AB = jnp.where(keep_AB, text.bytes_AB | away_AB << 8, 0).astype(jnp.uint16)

    def move(k, packed_AB):
        moves = lambda x_AB: (x_AB >> (8 + k).astype(jnp.uint16)) & 1 > 0
        comes_AB = ahead(packed_AB, 1 << k)
        return jnp.where(moves(comes_AB), comes_AB, jnp.where(moves(packed_AB), 0, packed_AB))

    return Text(jax.lax.fori_loop(0, _STEPS, move, packed_AB).astype(jnp.uint8), count(keep_AB))


def insert(text: Text, outer_AB: jax.Array, inner_AB: jax.Array) -> tuple[Text, jax.Array]:
    """Inserts up to two bytes before each position; also whether the result is too long.

    `outer_AB`, `inner_AB` uint8 are those bytes, 0 for none; inner is next to the position, and outer needs an inner.
    The position after the last byte counts too, so text and result must be shorter than WIDTH.
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
