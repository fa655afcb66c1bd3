"""Which examples are in which batch, and what a batch holds, against plain Python over the examples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.data.packing import pad_to
from premem_jax.data.pipeline import (
    collate,
    evaluation_batches,
    sequence,
    steps_per_epoch,
    tokenize,
)
from premem_jax.data.reader import batch_rows, train_batches
from premem_jax.data.tokenizer_files import train
from premem_jax.data.tokenizer_kinds import SentencePiece
from premem_jax.errors import UserError
from premem_jax.tasks import arithmetic
from tests.data.numbered import numbered

SEEDS = st.integers(0, 2**31)


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePiece(train(arithmetic.vocabulary(), kind="word", vocab_size=512))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    batch=st.integers(1, 70),
    seed=SEEDS,
    window=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_each_epoch_holds_each_row_once(lengths, batch, seed, window):
    """Every batch but the last of an epoch is full, the epoch ends where the rows do; a window rises in length."""
    examples, per_epoch = len(lengths), steps_per_epoch(len(lengths), batch)
    rows = batch_rows(lengths, batch, seed, window)
    for epoch in range(2):
        batches = [rows[epoch * per_epoch + t] for t in range(per_epoch)]
        assert sorted(itertools.chain(*batches)) == list(range(examples))
        assert [len(b) for b in batches[:-1]] == [batch] * (per_epoch - 1)
        assert len(batches[-1]) == examples - batch * (per_epoch - 1)
        for first in range(0, per_epoch, window):
            in_window = [lengths[row] for row in itertools.chain(*batches[first : first + window])]
            assert in_window == sorted(in_window)


@given(lengths=LENGTHS, batch=st.integers(1, 6), window=st.integers(1, 5), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_window_sorts_rows_and_loses_none(lengths, batch, window, seed):
    """Each row once an epoch; batches of a window grow in length; the rows of a window stay its own."""
    per_epoch = steps_per_epoch(len(lengths), batch)
    plain, sorted_rows = batch_rows(lengths, batch, seed), batch_rows(lengths, batch, seed, window)
    for epoch in range(2):
        for first in range(0, per_epoch, window):
            steps = [epoch * per_epoch + t for t in range(first, min(first + window, per_epoch))]
            rows = [row for step in steps for row in sorted_rows[step]]
            assert sorted(rows) == sorted(row for step in steps for row in plain[step])
            assert [lengths[row] for row in rows] == sorted(lengths[row] for row in rows)
        last = sorted_rows[epoch * per_epoch + per_epoch - 1]
        assert len(last) == len(lengths) - batch * (per_epoch - 1)


@given(examples=st.integers(60, 240), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_epochs_and_seeds_shuffle_anew(examples, seed):
    """From 60 examples on: of 15, Grain knows so few orders that 13 of 3,000 came twice, and one was no shuffle."""
    order = lambda seed, epoch: list(batch_rows([1] * examples, examples, seed)[epoch])
    orders = [order(seed, 0), order(seed, 1), order(seed, 2), order(seed + 1, 0), list(range(examples))]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_every_row_comes_first_now_and_then():
    """A shuffle, not a rotation or a swap: over many epochs each row leads, and each pair of neighbours occurs."""
    rows = batch_rows([1] * 5, 5, seed=0)
    orders = [list(rows[epoch]) for epoch in range(200)]
    leads = np.bincount([order[0] for order in orders], minlength=5)
    assert leads.min() > 20
    assert {pair for order in orders for pair in itertools.pairwise(order)} == set(itertools.permutations(range(5), 2))


@given(
    lengths=LENGTHS,
    batch=st.integers(1, 8),
    seed=SEEDS,
    cut=st.floats(0, 1),
    buckets=st.sampled_from([(), (16,), (8, 24)]),
    window=st.sampled_from([1, 3]),
)
@settings(max_examples=20, deadline=None)
def test_train_batches(lengths, batch, seed, cut, buckets, window):
    """Two epochs hold each id twice; padding rows weigh nothing; starting in the middle gives the same batches."""
    data = numbered(lengths)
    stop = 2 * steps_per_epoch(len(data), batch)
    options = dict(batch=batch, seed=seed, buckets=buckets, window=window)
    made = list(train_batches(data, 0, stop, **options))
    assert len(made) == stop
    for epoch in (made[: stop // 2], made[stop // 2 :]):
        ids = np.concatenate([ids for ids, _ in epoch])
        assert sorted(ids[ids >= 0]) == list(data.ids)
        assert all((ids >= 0).all() for ids, _ in epoch[:-1])

    def padded(length):
        return next((bucket for bucket in buckets if bucket >= length), -(-length // 32) * 32)

    longest = max(p + t for p, t in lengths)
    for ids, b in made:
        rows = [(i - 1000) // 3 for i in ids if i >= 0]
        in_batch = max(sum(lengths[row]) for row in rows)
        expected = padded(in_batch if buckets else longest)
        assert b["tokens"].shape == b["weights"].shape == (batch, expected)
        for row, tokens in zip(rows, b["tokens"], strict=False):
            assert np.trim_zeros(tokens).tolist() == [*data.prompts[row], *data.targets[row]]
        assert not b["weights"][len(rows) :].any() and not b["tokens"][len(rows) :].any()
        assert b["weights"].sum() == sum(lengths[row][1] for row in rows)
    start = int(cut * stop)
    again = list(train_batches(data, start, stop, **options))
    assert len(again) == stop - start
    for (_, one), (_, other) in zip(made[start:], again, strict=True):
        assert one.keys() == other.keys() == {"tokens", "weights"}
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_batch_says_what_the_text_says(tokenizer):
    """Under weight 1 stand the target and its stop marker, before it the start marker and the prompt, then zeros."""
    examples = arithmetic.problems("train", 40, seed=3)
    data = tokenize("train", examples, tokenizer, context=200, drop_long=False)
    rows = [31, 0, 17, 5]
    out = collate(data, rows, batch=6, length=120)
    for b, row in enumerate(rows):
        tokens, weighted = out["tokens"][b], out["weights"][b] == 1
        assert out["ids"][b] == examples[row].id
        assert tokens[0] == tokenizer.bos_id and tokens[weighted][-1] == tokenizer.eos_id
        assert tokenizer.decode(tokens[weighted][:-1]) == examples[row].target.strip()
        assert tokenizer.decode(tokens[1 : out["prompt_length"][b]]) == examples[row].prompt
        ends = np.flatnonzero(weighted)
        assert ends[0] == out["prompt_length"][b] and (np.diff(ends) == 1).all() and not tokens[ends[-1] + 1 :].any()
    assert set(np.unique(out["weights"])) == {0, 1}
    np.testing.assert_array_equal(out["ids"][4:], -1)
    assert not out["weights"][4:].any() and not out["tokens"][4:].any()


def test_prompts_may_weigh_something_but_the_start_marker_never_does():
    data = numbered([(3, 2), (1, 4)])
    weights = [sequence(data, row, prompt_weight=0.25)[1].tolist() for row in (0, 1)]
    assert weights == [[0, 0.25, 0.25, 1, 1], [0, 1, 1, 1, 1]]


def test_prompts_only():
    out = collate(numbered([(3, 2), (1, 4)]), [1, 0], batch=3, length=4, prompts_only=True)
    np.testing.assert_array_equal(out["tokens"], [[11, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(out["prompt_length"], [1, 3, 1])
    assert not out["weights"].any()


@given(
    lengths=LENGTHS,
    batch=st.integers(1, 25),
    buckets=st.sampled_from([(), (16,), (8, 24)]),
    prompts_only=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_evaluation_sees_every_row_once(lengths, batch, buckets, prompts_only):
    data = numbered(lengths)
    seen = []
    for rows, out in evaluation_batches(data, batch=batch, buckets=buckets, prompts_only=prompts_only):
        assert 1 <= len(rows) <= batch
        seen += list(rows)
        assert len(out["ids"]) == batch
        np.testing.assert_array_equal(out["ids"], [*data.ids[rows], *[-1] * (batch - len(rows))])
        for b, row in enumerate(rows):
            text = [*data.prompts[row], *([] if prompts_only else data.targets[row])]
            np.testing.assert_array_equal(np.trim_zeros(out["tokens"][b], "b"), text)
    assert sorted(seen) == list(range(len(data)))


def test_an_evaluation_pads_little():
    """Rows come shortest first, so the short ones are never padded to the longest."""
    lengths = [(1, 7), (1, 30), (1, 7), (1, 30), (1, 7), (1, 30)]
    shapes = [out["tokens"].shape for _, out in evaluation_batches(numbered(lengths), batch=3, buckets=(8, 31))]
    assert shapes == [(3, 8), (3, 31)]


@given(longest=st.integers(1, 300), buckets=st.lists(st.integers(1, 200), max_size=5))
def test_pad_to(longest, buckets):
    """The least admissible length, where beyond all buckets the multiples of 32 are admissible."""
    fitting = [bucket for bucket in buckets if bucket >= longest]
    assert pad_to(longest, buckets) == min(fitting or range(32 * -(-longest // 32), 1000, 32))
    assert pad_to(longest, buckets) >= longest


def test_long_examples_are_counted_and_named(tokenizer):
    examples = arithmetic.problems("train", 30, seed=0)
    sizes = {e.id: 2 + len((e.prompt + e.target).split()) for e in examples}  # a token per word, and two markers
    context = sorted(sizes.values())[-9] - 1
    long = [f"{i} ({n} tokens)" for i, n in sizes.items() if n > context]
    assert len(long) > 5
    with pytest.raises(UserError) as error:
        tokenize("train", examples, tokenizer, context=context, drop_long=False)
    assert f"split 'train': {len(long)} of 30 examples are longer than data.context={context}: " in str(error.value)
    assert ", ".join(long[:5]) + ", ..." in str(error.value) and long[5] not in str(error.value)
    kept = tokenize("train", examples, tokenizer, context=context, drop_long=True)
    assert [e.id for e in kept.examples] == [i for i, n in sizes.items() if n <= context]
    np.testing.assert_array_equal(kept.lengths, [n for n in sizes.values() if n <= context])


def test_an_empty_split_is_an_error(tokenizer):
    with pytest.raises(UserError, match="split 'test' is empty"):
        tokenize("test", [], tokenizer, context=10, drop_long=False)
    with pytest.raises(UserError, match="split 'test' is empty after leaving out 3 long examples"):
        tokenize("test", arithmetic.problems("test", 3, seed=0), tokenizer, context=10, drop_long=True)
