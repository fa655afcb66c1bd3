"""Token ids to text bytes on the device, through a table of the vocabulary.

Answers are read from bytes, not tokens, because real vocabularies merge a marker, digit or brace with the next bytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.grading.text import POSITION_A1, WIDTH, Text, hold


class ByteTable(NamedTuple):
    """The bytes of each token id. Shapes: bytes_VW uint8 (zero padded to the longest token), length_V int32."""

    bytes_VW: jax.Array | np.ndarray
    length_V: jax.Array | np.ndarray


def byte_table(token_bytes: Sequence[bytes]) -> ByteTable:
    """Builds the table of a vocabulary on the host; `token_bytes[i]` is the text of id i, b"" for a special token.

    Raises ValueError for an empty vocabulary.
    """
    if not token_bytes:
        raise ValueError("the vocabulary is empty: a byte table needs the bytes of at least one token")
    length_V = np.array([len(token) for token in token_bytes], np.int32)
    width = max(1, int(length_V.max()))
    padded = b"".join(bytes(token).ljust(width, b"\0") for token in token_bytes)
    return ByteTable(np.frombuffer(padded, np.uint8).reshape(len(token_bytes), width), length_V)


def window(
    tokens_BT: jax.Array,
    start_BT: jax.Array,
    total_B: jax.Array,
    table: ByteTable,
    token_B: jax.Array,
    position_B: jax.Array,
) -> tuple[Text, jax.Array]:
    """Up to WIDTH bytes of each text from byte `position_B` on, and whether the text continues after them.

    Shapes: tokens_BT, start_BT (bytes before each token), total_B (total bytes), token_B (a token that holds the byte
    or ends just before it), position_B -> Text, more_B bool. Ids outside the vocabulary must count 0 bytes in start_BT.
    """
    bytes_VW = jnp.asarray(table.bytes_VW)
    V, W = bytes_VW.shape
    B, T = tokens_BT.shape
    # One token per byte, and one before. Texts with empty tokens may show fewer bytes, which `more` reports.
    K = min(T, WIDTH + 1)
    padded_BT = jnp.concatenate([start_BT, jnp.broadcast_to(total_B[:, None], (B, K + 1))], axis=1)
    padded_ids_BT = jnp.pad(jnp.clip(tokens_BT, 0, V - 1), ((0, 0), (0, K)))
    cut = jax.vmap(lambda row_T, at, size: jax.lax.dynamic_slice(row_T, (at,), (size,)), in_axes=(0, 0, None))
    start_KB = (cut(padded_BT, token_B, K + 1) - position_B[:, None]).T
    begin_KB, end_KB = start_KB[:-1], start_KB[1:]

    # At each token's first position: the table index of its byte 0 minus that position. Every byte takes the nearest
    # such number before it. WIDTH is added to avoid 0, which means none.
    place_KB = cut(padded_ids_BT, token_B, K).T * W - begin_KB + WIDTH
    at_KB = jnp.where((end_KB > begin_KB) & (end_KB > 0), jnp.maximum(begin_KB, 0), WIDTH)
    set_row = lambda at_K, place_K: jnp.zeros(WIDTH, jnp.int32).at[at_K].set(place_K, mode="drop")
    place_AB = hold(jax.vmap(set_row, in_axes=1, out_axes=1)(at_KB, place_KB))
    found_AB = bytes_VW.reshape(-1).at[place_AB - WIDTH + POSITION_A1].get(mode="clip")

    left_B = total_B - position_B
    shown_B = jnp.minimum(jnp.minimum(left_B, start_KB[-1]), WIDTH)
    return Text(jnp.where(shown_B > POSITION_A1, found_AB, jnp.uint8(0)), shown_B), shown_B < left_B
