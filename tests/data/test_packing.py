"""Rows that several sequences share: every sequence once and whole, loads near the least possible, on any host."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.data.packing import LANES, Packing, pack
from premem_jax.data.reader import train_batches
from tests.data.numbered import numbered

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=40)


@given(sizes=SIZES, rows=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_each_sequence_is_in_one_row(sizes, rows):
    held = pack(sizes, rows)
    assert sorted(i for row in held for i in row) == list(range(len(sizes))) and len(held) == rows


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=7), rows=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_fullest_row_is_within_grahams_bound(sizes, rows):
    """At most 4/3 − 1/(3m) times the fullest row of the best arrangement, which is found by trying all."""
    fullest = lambda row_of: max(np.bincount(row_of, weights=sizes))
    best = min(fullest(row_of) for row_of in itertools.product(range(rows), repeat=len(sizes)))
    loads = [sum(sizes[i] for i in row) for row in pack(sizes, rows)]
    assert max(loads) <= (4 / 3 - 1 / (3 * rows)) * best


@given(sizes=SIZES)
@settings(max_examples=20, deadline=None)
def test_with_as_many_rows_as_sequences_each_has_its_own(sizes):
    assert pack(sizes, len(sizes)) == [[i] for i in range(len(sizes))]
    assert pack(sizes, len(sizes) + 2) == [*([i] for i in range(len(sizes))), [], []]


def sequences(arrays) -> dict[int, tuple[list, list]]:
    """Tokens and weights by segment; each is one stretch of one row, and rows are padded at their end."""
    found = {}
    for tokens, weights, segments in zip(*(arrays[key] for key in ("tokens", "weights", "segments")), strict=True):
        changes = np.flatnonzero(np.diff(segments)) + 1
        for part in np.split(np.arange(len(segments)), changes):
            segment = segments[part[0]]
            if segment:
                assert segment not in found
                found[segment] = tokens[part].tolist(), weights[part].tolist()
            else:
                assert part[-1] == len(segments) - 1 and not tokens[part].any() and not weights[part].any()
    return found


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 90)), min_size=1, max_size=30),
    batch=st.integers(3, 12),
    rows=st.integers(1, 2),
    seed=st.integers(0, 2**31),
    allowed=st.sampled_from([(), (256, 384)]),
)
@settings(max_examples=8, deadline=None)
def test_a_packed_batch_holds_the_examples_of_the_plain_one(lengths, batch, rows, seed, allowed):
    """In the same order of ids; of each example the same tokens and weights; and two hosts make the rows of one."""
    data = numbered(lengths)
    order = dict(batch=batch, seed=seed, buckets=())
    plain = list(train_batches(data, 0, 3, **order))
    packed = list(train_batches(data, 0, 3, **order, packing=Packing(rows, allowed)))
    halves = [
        list(train_batches(data, 0, 3, **order, packing=Packing(rows, allowed, here=here)))
        for here in (lambda count: range(count // 2), lambda count: range(count // 2, count))
    ]
    for (ids, alone), (same, shared), *parts in zip(plain, packed, *halves, strict=True):
        assert ids.tolist() == same.tolist()
        found = sequences(shared)
        assert sorted(found) == list(range(1, 1 + (ids >= 0).sum()))
        for b, (tokens, weights) in enumerate(found[i] for i in sorted(found)):
            assert np.trim_zeros(alone["tokens"][b]).tolist() == tokens
            assert alone["weights"][b, : len(weights)].tolist() == weights
        longest = max((shared["segments"] > 0).sum(axis=1))
        length = next((n for n in allowed if n >= longest), -(-longest // LANES) * LANES)
        assert shared["tokens"].shape == (rows, length)
        for key in shared:
            np.testing.assert_array_equal(np.concatenate([part[key] for _, part in parts]), shared[key])


def test_sizes_of_updates_give_rows_for_every_mesh():
    """As many for each part and micro-batch, of a multiple of 128 tokens; sizes that come to the same are one."""
    of = lambda *where: Packing.of((160, 161, 192), *where)[:3]
    assert of(128, 16, 1) == (16, (1280, 1408, 1536), 1) and of(128, 8, 2) == (16, (1280, 1408, 1536), 2)
    assert of(128, 32, 1) == (32, (640, 768), 1) and Packing.of((), 128, 16, 2)[:3] == (0, (), 2)
    assert of(128, 1, 1) == (20, (1024, 1152, 1280), 1) and of(128, 8, 1) == (16, (1280, 1408, 1536), 1)
    assert of(256, 16, 1) == (32, (1280, 1408, 1536), 1)  # a larger batch has more rows
    assert not Packing.of((160,), 16, 16).shares(16)  # with a row for each example there is nothing to share
