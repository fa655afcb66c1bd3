"""Hendrycks' normal form on the device: `normal_form.py`, rule by rule, on texts of static width."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.grading.normal_form import FRAC, SQRT, UNIT
from premem_jax.grading.text import POSITION_A1, Text, ahead, behind, count, delete, first, insert, starts

# Patterns in order, and the number of bytes deleted at the start of each match.
_MARKS = (
    (b"\n", 1),
    (b"\\!", 2),
    (b"\\\\", 1),
    (b"tfrac", 1),
    (b"dfrac", 1),
    (b"\\left", 5),
    (b"\\right", 6),
    (b"^{\\circ}", 8),
    (b"^\\circ", 6),
    (b"\\$", 2),
)
_PERCENT = ((b"\\%", 2),)


class Normal(NamedTuple):
    """A normal form without its last rule, which rewrites `0.5` and `a/b`.

    fails_B: there is no normal form; unsure_B: it exceeds the bounds of the kernel; least_B: lower bound of its bytes,
    valid for unsure ones too.
    """

    text: Text
    fails_B: jax.Array
    unsure_B: jax.Array
    least_B: jax.Array


def normalise(text: Text) -> Normal:
    """The normal form of texts shorter than the width."""
    text = _delete_patterns(text, _MARKS)
    unit_AB = starts(text, UNIT)
    fails_B = count(unit_AB) > 1
    text = delete(text, first(unit_AB) <= POSITION_A1)
    text = _delete_patterns(text, _PERCENT)

    left_side_AB = _left_side(text)
    text, inserted_B, root_fails_B, unsure_B = _zeros_and_roots(text)
    text = delete(text, left_side_AB | (text.bytes_AB == ord(" ")))
    least_B = text.length_B - inserted_B
    text, fraction_fails_B, fraction_unsure_B = _fractions(text)
    return Normal(text, fails_B | root_fails_B | fraction_fails_B, unsure_B | fraction_unsure_B, least_B)


def _delete_patterns(text: Text, rules: tuple[tuple[bytes, int], ...]) -> Text:
    """Deletes patterns in turn, as `bytes.replace` does: matches count from the left and do not overlap."""
    longest = max(len(pattern) for pattern, _ in rules)
    patterns = np.array([list(pattern.ljust(longest, b"\0")) for pattern, _ in rules], np.uint8)
    sizes, deleted = np.array([[len(pattern), number] for pattern, number in rules], np.int32).T

    def apply(text: Text, rule):
        pattern, size, deleted = rule
        found_AB = jnp.ones_like(text.bytes_AB, bool)
        for k in range(longest):
            found_AB &= (ahead(text.bytes_AB, k) == pattern[k]) | (k >= size)

        def step(left_B, found_B):
            left_B = jnp.where(found_B & (left_B == 0), size, left_B)  # bytes of the match from here on
            return jnp.maximum(left_B - 1, 0), left_B > size - deleted

        _, gone_AB = jax.lax.scan(step, jnp.zeros_like(text.length_B), found_AB)
        return delete(text, gone_AB), None

    return jax.lax.scan(apply, text, (patterns, sizes, deleted))[0]


def _zero_places(text: Text) -> jax.Array:
    """Marks full stops at the start, after a space or after an opening brace."""
    before_AB = behind(text.bytes_AB, 1)
    opens_AB = (before_AB == ord(" ")) | (before_AB == ord("{")) | (POSITION_A1 == 0)
    return (text.bytes_AB == ord(".")) & opens_AB


def _left_side(text: Text) -> jax.Array:
    """Marks `x =` in the text with leading zeros, if at most two characters precede its only equals sign."""
    equals_AB = text.bytes_AB == ord("=")
    place_B = first(equals_AB)
    left_AB = place_B > POSITION_A1
    zeros_B = count(left_AB & _zero_places(text))
    short_B = count(left_AB & ~_continues(text)) + zeros_B <= 2
    return (count(equals_AB) == 1) & short_B & (place_B + zeros_B >= POSITION_A1)


def _zeros_and_roots(text: Text):
    """Adds leading zeros, and braces around the character after a root.

    Returns the text, the inserted bytes, whether there is no normal form, and whether it is unsure."""
    root_AB, zero_AB = starts(text, SQRT), _zero_places(text)
    operand_AB = behind(root_AB, len(SQRT))
    nothing_AB = operand_AB & (root_AB | ~text.inside_AB)
    opens_AB = operand_AB & ~nothing_AB & (text.bytes_AB != ord("{"))
    closes_AB, unsure_B = _next_character(text, opens_AB)
    inner_AB = _choose((zero_AB, b"0"), (opens_AB, b"{"), (closes_AB, b"}"))
    outer_AB = _choose((zero_AB & closes_AB, b"}"))
    grown, over_B = insert(text, outer_AB, inner_AB)
    return grown, count(inner_AB > 0) + count(outer_AB > 0), jnp.any(nothing_AB, axis=0), unsure_B | over_B


def _fractions(text: Text):
    """Adds braces around the two characters after a fraction, or the one before a brace.

    Returns the text, whether there is no normal form, and whether it is unsure."""
    fraction_AB = starts(text, FRAC)
    ends_AB = fraction_AB | ~text.inside_AB
    brace_AB = text.bytes_AB == ord("{")
    above_AB = behind(fraction_AB, len(FRAC))
    nothing_AB = above_AB & ends_AB
    above_AB &= ~ends_AB & ~brace_AB
    below_AB, unsure_B = _next_character(text, above_AB)
    alone_AB = below_AB & ends_AB
    bare_AB = below_AB & ~ends_AB & ~brace_AB
    closes_AB, unsure_too_B = _next_character(text, bare_AB)
    # Parts are read from the left: the first one that is too short decides the result.
    fails_B = first(nothing_AB) < first(alone_AB)
    rewritten_B = first(alone_AB) >= first(nothing_AB)
    inner_AB = _choose((above_AB | bare_AB, b"{"), (below_AB | closes_AB, b"}"))
    outer_AB = _choose((bare_AB, b"}"))
    grown, over_B = insert(text, outer_AB * rewritten_B, inner_AB * rewritten_B)
    return grown, fails_B, unsure_B | unsure_too_B | over_B


def _choose(*choices: tuple[jax.Array, bytes]) -> jax.Array:
    """The byte of the first set mark, 0 if none is set."""
    chosen = jnp.uint8(0)
    for mark_AB, byte in reversed(choices):
        chosen = jnp.where(mark_AB, jnp.uint8(byte[0]), chosen)
    return chosen


def _continues(text: Text) -> jax.Array:
    """Marks UTF-8 continuation bytes."""
    return text.bytes_AB & 0xC0 == 0x80


def _next_character(text: Text, mark_AB: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves marks by one character; also whether one failed, since a UTF-8 character has at most four bytes."""
    continues_AB, moved_AB = _continues(text), jnp.zeros_like(mark_AB)
    for _ in range(4):
        mark_AB = behind(mark_AB, 1)
        moved_AB |= mark_AB & ~continues_AB
        mark_AB &= continues_AB
    return moved_AB, jnp.any(mark_AB, axis=0)
