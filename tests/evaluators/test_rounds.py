"""Which batches long responses are drawn in, with a sampler whose responses are known."""

import itertools

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


three = lambda most: st.lists(st.integers(0, most), min_size=3, max_size=3)


@given(
    lengths=st.lists(three(11), min_size=1, max_size=20),
    kept=st.none() | st.lists(three(14), min_size=20, max_size=20),
    size=st.integers(1, 6),
    first=st.integers(1, 12),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_every_response_is_drawn_once_to_its_end(lengths, kept, size, first, data):
    """Of each prompt three responses of known lengths, up to 11; token t of response r to row e is 100 e + 10 r + t.

    With `kept`, some begin with so many tokens of a reference, or end there.
    """
    E, R, T = len(lengths), 3, 11
    only = sorted(data.draw(st.sets(st.integers(0, E - 1))))
    prompts = [np.full(1 + e % 4, 5000 + e) for e in range(E)]
    split = Tokenized([Example(70 + e, "", "", "") for e in range(E)], prompts, [1000 + np.arange(14)] * E)
    tokens, verdicts = round_tokens(T, first), itertools.count(1)
    made, drawn, verdict = Rounds(split, R, tokens, (4, 9), only), {}, {}
    begun = {(e, r): 0 for e in only for r in range(R)}

    def response(e, r):
        own = 100 * e + 10 * r + np.arange(lengths[e][r])
        same = min(kept[e][r], lengths[e][r]) if kept else 0
        return np.concatenate([1000 + np.arange(same), own[same:]])

    for e in only if kept else ():
        begun |= {(e, r): min(kept[e][r], lengths[e][r]) for r in range(R)}
        kept_R, ended_R = (
            np.array([begun[e, r] for r in range(R)]),
            np.array([kept[e][r] >= lengths[e][r] for r in range(R)]),
        )
        verdict |= {(e, r): -1 for r in range(R)}
        if made.begin(e, kept_R, ended_R, np.full(R, -1)):
            drawn[e] = made.take(e)
        begun |= {(e, r): None for r in range(R) if ended_R[r]}
    for batch in made.batches(size, everything):
        arrays, new = batch.arrays, tokens[batch.round]
        each = arrays["begun"].shape[1]
        assert {len(x) for x in arrays.values()} == {batch.size}
        assert batch.size == (size if each == R else continuing(size, R)) and each in (1, R)
        given_XT, length_X = np.full((len(batch.at), new), -7), np.full(len(batch.at), -7)
        verdict_X = np.array([next(verdicts) for _ in length_X])
        assert (arrays["ids"][-(-len(batch.at) // each) :] == -1).all()
        for x, (row, r) in enumerate(batch.at):
            b, n = x // each, begun[row, r]
            if n is None:  # its reference has decided it, and others of its prompt go on
                continue
            assert batch.rows[b] == row and r == arrays["first"][b] + x % each
            assert arrays["ids"][b] == 70 + row and arrays["begun"][b, x % each] == n
            prompt = [*prompts[row], *response(row, r)[:n]]
            assert arrays["prompt_length"][b] == len(prompts[row])
            np.testing.assert_array_equal(arrays["tokens"][b, : len(prompt)], prompt)
            now = response(row, r)[n : n + new]
            given_XT[x], length_X[x] = np.pad(now, (0, new - len(now))), len(now)
            finished = len(now) < new or n + len(now) == T
            begun[row, r], verdict[row, r] = None if finished else n + len(now), verdict_X[x]
        for row in made.add(batch, given_XT, length_X, verdict_X):
            assert row not in drawn
            drawn[row] = made.take(row)
    assert sorted(drawn) == only and set(begun.values()) <= {None}
    for row, mine in drawn.items():
        for r in range(R):
            np.testing.assert_array_equal(mine.tokens[r, : mine.length[r]], response(row, r))
            assert mine.length[r] == lengths[row][r] and not mine.tokens[r, mine.length[r] :].any()
            assert mine.verdict[r] == verdict[row, r]


def test_samples_share_their_prompt_where_that_costs_less():
    """Of four samples with 20 tokens left and a prompt of 30: all, three, or one are unfinished. One costs less alone,
    and so do three of which two have little left."""
    targets, prompt = [np.arange(21)] * 4, np.arange(30)
    split = Tokenized([Example(e, "", "", "") for e in range(4)], [prompt] * 4, targets)
    made = Rounds(split, 4, [30], (), range(4))
    for row, (ended, kept) in enumerate(((0, 1), (1, 1), (3, 1), (1, [1, 1, 15, 19]))):
        made.begin(row, np.full(4, kept), np.arange(4) < ended, np.zeros(4))
    assert [batch.at for batch in made.batches(2, everything)] == [
        [(row, r) for row in (0, 1) for r in range(4)],
        [(3, 3), (3, 2), (2, 3), (3, 1)],
    ]


def test_those_that_go_on_wait_until_they_fill_a_batch():
    """Of eight prompts all responses are long: batches of the second round come as soon as there are enough."""
    split = Tokenized([Example(e, "", "", "") for e in range(8)], [np.array([9])] * 8, [np.array([1])] * 8)
    made, order = Rounds(split, 4, round_tokens(4, 2), (), range(8)), []
    for batch in made.batches(2, everything):
        order.append((batch.round, len(batch.at)))
        n, length = len(batch.at), 1 if batch.round else 2
        made.add(batch, np.ones((n, 2), int), np.full(n, length), np.zeros(n))
    assert order == [(0, 8), (1, 4), (1, 4)] * 4
