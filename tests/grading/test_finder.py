"""The automaton over tokens against `bytes.find`, and the windows it opens against slices."""

import random

import jax
import numpy as np

from premem_jax.grading.bytes import byte_table, window
from premem_jax.grading.finder import NOWHERE, find, make_finder, patterns_of
from premem_jax.grading.rules import Phrase, Rules
from premem_jax.grading.text import WIDTH
from tests.grading.vocabularies import cutter, pad_tokens

# Phrases that hold, begin and end one another, so that every kind of state occurs.
RULES = Rules(
    True, (Phrase(b"abab"), Phrase(b"ba", first=True), Phrase(b"b"), Phrase(b"aab"), Phrase(b"xa", first=True))
)
PIECES = [
    b"a",
    b"b",
    b"x",
    b"ab",
    b"ba",
    b"aba",
    b"abab",
    b"abababab",
    b"xab",
    b"box",
    b"ox",
    b"\\box",
    b"ed",
    b"\\boxed",
    b"ed\\fb",
]


def drawn(rows: int, seed: int = 0):
    draw = random.Random(seed)
    texts = [b"".join(draw.choices(PIECES, k=draw.randint(0, 150))) for _ in range(rows)]
    token_bytes = (*PIECES, *(bytes([i]) for i in b"edfo\\"), b"", b"")
    tokens_BT, length_B = pad_tokens(
        [cutter(token_bytes, seed)(text) for text in texts], (rows, 1024), len(token_bytes)
    )
    return texts, token_bytes, tokens_BT, length_B


def test_matches_are_those_of_bytes():
    texts, token_bytes, tokens_BT, length_B = drawn(200)
    table, finder = byte_table(token_bytes), make_finder(token_bytes, RULES)
    found = jax.jit(find, static_argnums=4)(tokens_BT, length_B, table.length_V, finder, RULES)
    np.testing.assert_array_equal(found.total_B, [len(text) for text in texts])
    seen = set()
    for p, (pattern, first) in enumerate(patterns_of(RULES)):
        for b, text in enumerate(texts):
            at = text.find(pattern) if first else text.rfind(pattern)
            end = NOWHERE if at < 0 else at + len(pattern)
            assert found.end_PB[p, b] == end, (pattern, text)
            seen.add((p, at < 0))
            if at >= 0:
                token = found.token_PB[p, b]
                assert (
                    found.start_BT[b, token] < end <= found.start_BT[b, token] + len(token_bytes[tokens_BT[b, token]])
                )
    assert len(seen) == 2 * len(patterns_of(RULES))


def test_windows_are_slices():
    texts, token_bytes, tokens_BT, length_B = drawn(64)
    table, finder = byte_table(token_bytes), make_finder(token_bytes, RULES)
    found = jax.jit(find, static_argnums=4)(tokens_BT, length_B, table.length_V, finder, RULES)
    for p in range(len(patterns_of(RULES))):
        text, more_B = jax.jit(window)(
            tokens_BT, found.start_BT, found.total_B, table, found.token_PB[p], found.end_PB[p]
        )
        shown = np.asarray(text.bytes_AB).T
        for b in np.flatnonzero(np.asarray(found.token_PB[p]) != NOWHERE):
            rest, n = texts[b][found.end_PB[p, b] :], int(text.length_B[b])
            assert shown[b, :n].tobytes() == rest[:n] and not shown[b, n:].any()
            assert bool(more_B[b]) == (n < len(rest)) and n >= min(len(rest), WIDTH // 2)
