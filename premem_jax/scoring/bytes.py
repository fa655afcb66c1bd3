"""Token ids to text bytes on the device, through a table of the vocabulary.

Answers are read from bytes, never from tokens: real vocabularies merge a marker, a digit or a brace with what follows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ByteTable(NamedTuple):
    """The bytes of each token id. Shapes: bytes_VW uint8 (zero padded to the longest token), length_V int32."""

    bytes_VW: jax.Array | np.ndarray
    length_V: jax.Array | np.ndarray


def byte_table(token_bytes: Sequence[bytes]) -> ByteTable:
    """Table of a vocabulary on the host; `token_bytes[i]` is the text of id i, b"" for a special token.

    Raises ValueError for an empty vocabulary.
    """
    if not token_bytes:
        raise ValueError("the vocabulary is empty: a byte table needs the bytes of at least one token")
    length_V = np.array([len(token) for token in token_bytes], np.int32)
    width = max(1, int(length_V.max()))
    padded = b"".join(bytes(token).ljust(width, b"\0") for token in token_bytes)
    return ByteTable(np.frombuffer(padded, np.uint8).reshape(len(token_bytes), width), length_V)


def token_bytes_stream(tokens_BT: jax.Array, length_B: jax.Array, table: ByteTable) -> tuple[jax.Array, jax.Array]:
    """Texts of the first `length_B` tokens of each row, as bytes without gaps.

    Shapes: tokens_BT int, length_B int -> bytes_BN uint8 (zero from its length on), byte length_B int32, where N = T*W
    holds T of the longest token, so no text is ever cut. Entries from `length_B` on are never looked at; an id outside
    the table (a model's vocabulary is often padded past its tokenizer's) has no text. Rows are independent, so a
    batch sharded over B needs no communication. Works under jit and vmap.
    """
    bytes_VW, length_V = jnp.asarray(table.bytes_VW), jnp.asarray(table.length_V)
    V, W = bytes_VW.shape
    B, T = tokens_BT.shape
    exists_BT = (jnp.arange(T) < length_B[:, None]) & (tokens_BT >= 0) & (tokens_BT < V)
    tokens_BT = jnp.where(exists_BT, tokens_BT, 0)
    sizes_BT = jnp.where(exists_BT, length_V[tokens_BT], 0)
    start_BT = jnp.cumsum(sizes_BT, axis=1) - sizes_BT
    total_B = jnp.sum(sizes_BT, axis=1)

    # Slot t*W + w of the padded texts goes to start_t + w. The number of slots skipped before token t, t*W - start_t,
    # never falls, so a running maximum over the marks at the starts says for each output byte how far back it comes
    # from. An empty token marks the start of the next one with a smaller number, which the maximum then ignores.
    skipped_BT = jnp.arange(T) * W - start_BT
    marks_BN = jax.vmap(lambda start_T, skipped_T: jnp.zeros(T * W, jnp.int32).at[start_T].max(skipped_T, mode="drop"))(
        start_BT, skipped_BT
    )
    source_BN = jnp.arange(T * W) + jax.lax.cummax(marks_BN, axis=1)
    padded_BN = bytes_VW[tokens_BT].reshape(B, T * W)
    stream_BN = jnp.take_along_axis(padded_BN, source_BN, axis=1, mode="clip")
    return jnp.where(jnp.arange(T * W) < total_B[:, None], stream_BN, jnp.uint8(0)), total_B
