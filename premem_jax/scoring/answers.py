"""Verdicts of sampled answers on the device; `reference.py` states the rules and decides every doubt."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.scoring.bytes import ByteTable, token_bytes_stream
from premem_jax.scoring.reference import MARKER, normalise
from premem_jax.scoring.verdict import Verdict


class Answers(NamedTuple):
    """Normalised reference answers. Shapes: bytes_EA uint8 (zero padded to the longest answer), length_E int32."""

    bytes_EA: jax.Array | np.ndarray
    length_E: jax.Array | np.ndarray


def answer_bytes(answers: Sequence[str | bytes]) -> Answers:
    """Reference answers, normalised on the host, as arrays; row e belongs to answers[e].

    Raises ValueError for an answer that holds a newline, since the answer of a response ends there.
    """
    kept = [normalise(answer.encode() if isinstance(answer, str) else bytes(answer)) for answer in answers]
    for row, answer in enumerate(kept):
        if b"\n" in answer:
            raise ValueError(f"reference answer {row} holds a newline, so no response could equal it: {answers[row]!r}")
    width = max([1, *map(len, kept)])
    padded = b"".join(answer.ljust(width, b"\0") for answer in kept)
    bytes_EA = np.frombuffer(padded, np.uint8).reshape(len(kept), width)
    return Answers(bytes_EA, np.array([len(answer) for answer in kept], np.int32))


def grade_stream(bytes_BN: jax.Array, length_B: jax.Array, answers: Answers, marker: bytes = MARKER) -> jax.Array:
    """Verdicts of texts given as bytes: span behind the first marker, normalised, compared.

    Shapes: bytes_BN uint8, length_B int32 (in bytes), answers with one row for each of B -> verdict_B int8, codes of
    `Verdict`. `marker` is static. A span longer than any reference answer is still decided exactly. Raises ValueError
    for an empty marker. Works under jit, vmap and on batches sharded over B.
    """
    if not marker:
        raise ValueError("the answer marker is empty; give the bytes that stand before an answer, such as b'####'")
    N = bytes_BN.shape[1]
    position_N = jnp.arange(N)
    length_B1 = length_B[:, None]

    ahead_BN = jnp.pad(bytes_BN, ((0, 0), (0, len(marker) - 1)))
    match_BN = position_N + len(marker) <= length_B1
    for k, byte in enumerate(marker):
        match_BN &= ahead_BN[:, k : k + N] == byte
    start_B1 = jnp.argmax(match_BN, axis=1, keepdims=True) + len(marker)
    behind_BN = jnp.any(match_BN, axis=1, keepdims=True) & (position_N >= start_B1) & (position_N < length_B1)
    end_B1 = jnp.min(jnp.where(behind_BN & (bytes_BN == ord("\n")), position_N, N), axis=1, keepdims=True)
    span_BN = behind_BN & (position_N < end_B1)

    keep_BN = span_BN & (bytes_BN != ord(" ")) & (bytes_BN != ord("\t"))
    keep_BN &= (bytes_BN != ord("\r")) & (bytes_BN != ord(","))
    count_BN = jnp.cumsum(keep_BN, axis=1)
    plus_BN = keep_BN & (count_BN == 1) & (bytes_BN == ord("+"))
    keep_BN &= ~plus_BN
    digit_B = jnp.any(keep_BN & (bytes_BN >= ord("0")) & (bytes_BN <= ord("9")), axis=1)

    # Kept byte number r is compared with answer byte r where it stands; the counts settle what is past either end.
    rank_BN = count_BN - 1 - jnp.any(plus_BN, axis=1, keepdims=True)
    wanted_BN = jnp.take_along_axis(jnp.asarray(answers.bytes_EA), rank_BN, axis=1, mode="clip")
    differs_B = jnp.any(keep_BN & (wanted_BN != bytes_BN), axis=1)
    equal_B = ~differs_B & (jnp.sum(keep_BN, axis=1) == jnp.asarray(answers.length_E))
    parsed = jnp.where(equal_B, Verdict.CORRECT.value, Verdict.WRONG.value)
    return jnp.where(digit_B, parsed, Verdict.UNPARSED.value).astype(jnp.int8)


def grade(
    tokens_BT: jax.Array, length_B: jax.Array, table: ByteTable, answers: Answers, marker: bytes = MARKER
) -> jax.Array:
    """Verdicts of sampled responses, from token ids alone and with no call to the host.

    Shapes: tokens_BT int, length_B int (tokens that count; the rest of a row is padding), answers with one row for each
    of B -> verdict_B int8, codes of `Verdict`. `marker` is static. Raises ValueError for an empty marker. Works under
    jit, vmap (over samples, with the answers not mapped) and on batches sharded over B. Temporaries are some 12 bytes
    for each of B * T * W positions (XLA's own analysis on CPU), W the longest token. Source: rules of `reference.py`.
    """
    return grade_stream(*token_bytes_stream(tokens_BT, length_B, table), answers, marker)
