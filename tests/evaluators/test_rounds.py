"""Which batches long responses are drawn in, with a sampler whose responses are known."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.data.examples import Example
from premem_jax.data.pipeline import Tokenized
from premem_jax.evaluators.rounds import Rounds, continuing, round_tokens

everything = lambda size: np.arange(size)


@given(T=st.integers(1, 3000), first=st.integers(1, 200))
def test_rounds_double_what_there_is(T, first):
    tokens = round_tokens(T, first)
    assert sum(tokens) == T and tokens[0] == min(T, first)
    for i in range(1, len(tokens)):
        assert tokens[i] == (sum(tokens[:i]) if i + 1 < len(tokens) else T - sum(tokens[:i]))
        assert tokens[i] <= sum(tokens[:i])


@given(
    lengths=st.lists(st.lists(st.integers(0, 11), min_size=3, max_size=3), min_size=1, max_size=20),
    size=st.integers(1, 6),
    first=st.integers(1, 12),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_every_response_is_drawn_once_to_its_end(lengths, size, first, data):
    """Of each prompt three responses of known lengths, up to 11; token t of response r to row e is 100 e + 10 r + t."""
    E, R, T = len(lengths), 3, 11
    only = sorted(data.draw(st.sets(st.integers(0, E - 1))))
    prompts = [np.full(1 + e % 4, 5000 + e) for e in range(E)]
    split = Tokenized([Example(70 + e, "", "", "") for e in range(E)], prompts, [np.array([1])] * E)
    response = lambda e, r: 100 * e + 10 * r + np.arange(lengths[e][r])
    tokens = round_tokens(T, first)
    made, drawn = Rounds(split, R, tokens, (4, 9)), {}
    for batch in made.batches(size, only, everything):
        begun, new = sum(tokens[: batch.round]), tokens[batch.round]
        arrays, each = batch.arrays, 1 if batch.round else R
        assert {len(x) for x in arrays.values()} == {batch.size}
        assert batch.size == (continuing(size, R) if batch.round else size)
        assert len(batch.at) <= batch.size * each
        given_XT, length_X = np.full((len(batch.at), new), -7), []
        for x, (row, r) in enumerate(batch.at):
            b = x // each
            assert batch.rows[b] == row and r == arrays["first"][b] + x % each
            assert arrays["ids"][b] == 70 + row
            so_far = response(row, r)[:begun]
            assert len(so_far) == begun  # what is finished does not go on
            np.testing.assert_array_equal(arrays["begun"][b], so_far)
            expected = [*prompts[row], *so_far]
            np.testing.assert_array_equal(arrays["tokens"][b, : arrays["prompt_length"][b]], expected)
            now = response(row, r)[begun : begun + new]
            given_XT[x], length = np.pad(now, (0, new - len(now))), len(now)
            length_X.append(length)
        assert (arrays["ids"][-(-len(batch.at) // each) :] == -1).all()
        for row in made.add(batch, given_XT, np.array(length_X, int), np.full(len(batch.at), batch.round)):
            assert row not in drawn
            drawn[row] = made.take(row)
    assert sorted(drawn) == only
    for row, mine in drawn.items():
        for r in range(R):
            np.testing.assert_array_equal(mine.tokens[r, : mine.length[r]], response(row, r))
            assert mine.length[r] == lengths[row][r] and not mine.tokens[r, mine.length[r] :].any()
            ends = np.cumsum(tokens)
            assert mine.verdict[r] == min(np.searchsorted(ends, lengths[row][r], side="right"), len(tokens) - 1)


def test_those_that_go_on_wait_until_they_fill_a_batch():
    """Of eight prompts all responses are long: batches of the second round come as soon as there are enough."""
    split = Tokenized([Example(e, "", "", "") for e in range(8)], [np.array([9])] * 8, [np.array([1])] * 8)
    made, order = Rounds(split, 4, round_tokens(4, 2), ()), []
    for batch in made.batches(2, None, everything):
        order.append((batch.round, len(batch.at)))
        n, length = len(batch.at), 1 if batch.round else 2
        made.add(batch, np.ones((n, 2), int), np.full(n, length), np.zeros(n))
    assert order == [(0, 8), (1, 4), (1, 4)] * 4
