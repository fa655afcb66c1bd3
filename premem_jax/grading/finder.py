"""Finds where an answer begins, by a pattern automaton over token ids.

Each token maps the automaton's state before it to the state after it. Most tokens of a vocabulary map all states to
the same one, so there are few classes of tokens (161 in Llama 3 for the rules of MATH). One pass searches a text of any
length; bytes are read only where an answer was found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.grading.rules import BOXES, Rules

NOWHERE = -1
_HIT_SHIFT = 8  # bits for the next state; the bits above say which patterns end in the token


class Finder(NamedTuple):
    """The automaton: class_V int32; step_CS uint32, next state and pattern bits; end_CSP uint16, end of a match.

    C classes of tokens (class 0 has no text), S states, P patterns.
    """

    class_V: jax.Array | np.ndarray
    step_CS: jax.Array | np.ndarray
    end_CSP: jax.Array | np.ndarray


class Found(NamedTuple):
    """Byte offsets of texts, and the last match of each pattern (the first, if its phrase says so).

    start_BT: bytes before each token; total_B: bytes of the text; token_PB, end_PB: the token in which the match ends
    and the byte after it, NOWHERE without a match. All int32.
    """

    start_BT: jax.Array
    total_B: jax.Array
    token_PB: jax.Array
    end_PB: jax.Array


def patterns_of(rules: Rules) -> tuple[tuple[bytes, bool], ...]:
    """The patterns, and whether the first match counts: the boxes, then the phrases in order."""
    return (*((box, False) for box in BOXES), *((phrase.text, phrase.first) for phrase in rules.phrases))


def make_finder(token_bytes: Sequence[bytes], rules: Rules) -> Finder:
    """Builds the automaton of a vocabulary on the host; about a second for 128,000 tokens.

    Raises ValueError if the rules need more than 16 patterns or 256 states.
    """
    patterns = patterns_of(rules)
    next_SK, accepts_SP = _automaton([text for text, _ in patterns])
    rows_VS, hits = _run_tokens(token_bytes, next_SK, accepts_SP)
    S, P = accepts_SP.shape

    hit_tokens, place_N = np.unique(hits[:, 0], return_inverse=True)
    end_HSP = np.zeros((len(hit_tokens), S, P), np.uint16)
    _, states, numbers, ends = hits.T  # in the order of ends: where several match, the last one written is the last
    first_N = np.array([first for _, first in patterns])[numbers]
    for chosen in (np.flatnonzero(~first_N), np.flatnonzero(first_N)[::-1]):
        end_HSP[place_N[chosen], states[chosen], numbers[chosen]] = ends[chosen]

    no_text = np.arange(S, dtype=np.uint8)[None]
    rows_NS, class_N = _distinct(np.concatenate([no_text, np.delete(rows_VS, hit_tokens, axis=0)]))
    swap = np.arange(len(rows_NS))
    swap[[0, class_N[0]]] = swap[[class_N[0], 0]]  # its own inverse, so it maps old to new and new to old
    keys_HK = np.concatenate([rows_VS[hit_tokens], end_HSP.reshape(len(hit_tokens), -1).view(np.uint8)], axis=1)
    keys_MK, class_H = _distinct(keys_HK)

    class_V = np.zeros(len(token_bytes), np.int32)
    class_V[np.delete(np.arange(len(token_bytes)), hit_tokens)] = swap[class_N[1:]]
    class_V[hit_tokens] = len(rows_NS) + class_H
    end_MSP = keys_MK[:, S:].copy().view(np.uint16).reshape(-1, S, P)
    end_CSP = np.concatenate([np.zeros((len(rows_NS), S, P), np.uint16), end_MSP])
    next_CS = np.concatenate([rows_NS[swap], keys_MK[:, :S]]).astype(np.uint32)
    bits_CS = ((end_CSP > 0) << np.arange(P, dtype=np.uint32)).sum(axis=2, dtype=np.uint32)
    return Finder(class_V, next_CS | bits_CS << _HIT_SHIFT, end_CSP)


def find(tokens_BT: jax.Array, length_B: jax.Array, size_V: jax.Array, finder: Finder, rules: Rules) -> Found:
    """Runs the automaton over the first `length_B` tokens of each row; those outside the vocabulary have no text.

    Shapes: tokens_BT int, length_B int, size_V int32 (bytes of each token). `rules` is static and must be the finder's.
    """
    first_P1 = jnp.array([[first] for _, first in patterns_of(rules)])
    P, B = first_P1.shape[0], tokens_BT.shape[0]
    C, S = finder.step_CS.shape
    if finder.end_CSP.shape != (C, S, P):
        raise ValueError("the vocabulary table was made for other grading rules")
    V = finder.class_V.shape[0]
    exists_BT = (jnp.arange(tokens_BT.shape[1]) < length_B[:, None]) & (tokens_BT >= 0) & (tokens_BT < V)
    tokens_BT = jnp.where(exists_BT, tokens_BT, 0)
    class_BT = jnp.where(exists_BT, jnp.asarray(finder.class_V)[tokens_BT], 0)
    size_BT = jnp.where(exists_BT, jnp.asarray(size_V)[tokens_BT], 0)
    step_N, end_N = jnp.asarray(finder.step_CS).reshape(-1), jnp.asarray(finder.end_CSP).reshape(-1)
    pattern_P1 = jnp.arange(P, dtype=jnp.uint32)[:, None]

    def step(carry, token):
        state_B, start_B, best_PB = carry
        t, class_B, size_B = token
        code_B = class_B * S + state_B
        out_B = step_N[code_B]
        hit_PB = ((out_B >> _HIT_SHIFT) >> pattern_P1) & 1 > 0
        best_PB = jnp.where(hit_PB & (~first_P1 | (best_PB == NOWHERE)), t, best_PB)
        state_B = (out_B & (2**_HIT_SHIFT - 1)).astype(jnp.int32)
        return (state_B, start_B + size_B, best_PB), (code_B, start_B)

    zero_B = jnp.zeros_like(length_B, jnp.int32)
    nowhere_PB = jnp.zeros((P, B), jnp.int32) + zero_B + NOWHERE
    T = tokens_BT.shape[1]
    steps = jnp.arange(T, dtype=jnp.int32), class_BT.T, size_BT.T
    (_, total_B, token_PB), (code_TB, start_TB) = jax.lax.scan(step, (zero_B, zero_B, nowhere_PB), steps)
    at_match = lambda x_TB: jnp.take_along_axis(x_TB, jnp.maximum(token_PB, 0), axis=0)
    end_PB = at_match(start_TB) + end_N[at_match(code_TB) * P + jnp.arange(P)[:, None]]
    return Found(start_TB.T, total_B, token_PB, jnp.where(token_PB == NOWHERE, NOWHERE, end_PB))


def _automaton(patterns: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The automaton on bytes: next state by byte, and the patterns that end in each state.

    States are the prefixes of patterns; 0 is the empty one."""
    prefixes = sorted({pattern[:n] for pattern in patterns for n in range(len(pattern) + 1)}, key=lambda p: (len(p), p))
    if len(prefixes) > 2**_HIT_SHIFT or len(patterns) > 16:
        raise ValueError(
            f"grading rules of {len(patterns)} phrases and {len(prefixes)} states: 16 and 256 are the most"
        )
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    next_SK = np.zeros((len(prefixes), 256), np.uint8)
    for prefix, state in index.items():
        for byte in set(b"".join(patterns)):
            text = prefix + bytes([byte])
            next_SK[state, byte] = next(index[text[i:]] for i in range(len(text) + 1) if text[i:] in index)
    return next_SK, np.array([[prefix.endswith(pattern) for pattern in patterns] for prefix in prefixes])


def _run_tokens(token_bytes, next_SK: np.ndarray, accepts_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The state after each token from every state, and every (token, state, pattern, end) where a match ends."""
    S = len(next_SK)
    size_V = np.array([len(token) for token in token_bytes])
    order = np.argsort(-size_V, kind="stable")
    rows = np.tile(np.arange(S, dtype=np.uint8), (len(order), 1))  # of tokens in this order, longest first
    next_N, accepts_S, hits = next_SK.reshape(-1), accepts_SP.any(axis=1), []
    for w in range(size_V.max()):
        active = int(np.count_nonzero(size_V > w))
        byte_A = np.fromiter((token_bytes[i][w] for i in order[:active]), np.intp, active)
        rows[:active] = next_N[rows[:active] * np.intp(256) + byte_A[:, None]]
        tokens, states = np.nonzero(accepts_S[rows[:active]])
        which, patterns = np.nonzero(accepts_SP[rows[tokens, states]])
        hits.append(np.stack([order[tokens[which]], states[which], patterns, np.full(len(which), w + 1)], axis=1))
    rows_VS = np.empty_like(rows)
    rows_VS[order] = rows
    return rows_VS, np.concatenate([np.zeros((0, 4), np.intp), *hits])


def _distinct(rows_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct byte rows, and the index of each row among them."""
    rows_NK = np.ascontiguousarray(rows_NK)
    _, first, inverse = np.unique(rows_NK.view(f"V{rows_NK.shape[1]}"), return_index=True, return_inverse=True)
    return rows_NK[first], inverse.reshape(-1)
