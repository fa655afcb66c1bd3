"""Sampled responses against the distribution that a float64 NumPy model gives them, and against each other."""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax import sharding
from premem_jax.models.decoder import build, unstack
from premem_jax.sampling import sampler
from premem_jax.sampling.sampler import nucleus, sample
from tests import tiny
from tests.models import llama

MODEL = build(tiny.CONFIG)
PARAMS = tiny.parameters()
LENGTHS = np.array([4, 9, 1, 6, 3, 7, 2, 5], np.int32)
PROMPTS = np.random.default_rng(5).integers(0, tiny.CONFIG.V, (8, 9)).astype(np.int32)
IDS = np.array([17, 4, 1_000_000, 0, 99, 5, 6, 2], np.int32)
NEVER = -1  # an end marker that no token equals


@pytest.fixture(scope="module")
def draw():
    """The sampler, compiled once per setting and shape; prompts and ids by row of the tables above."""
    compiled = {}

    def run(rows, *, samples=4, T=6, seed=0, P=9, params=PARAMS, put=lambda x: x, **sampling):
        options = dict(samples=samples, max_new_tokens=T, temperature=0.8, top_p=1.0, eos_ids=(NEVER,)) | sampling
        jitted = compiled.setdefault(str(options), jax.jit(partial(sample, MODEL, **options)))
        prompts = np.full((len(rows), P), 11, np.int32)
        for b, row in enumerate(rows):
            prompts[b, : LENGTHS[row]] = PROMPTS[row, : LENGTHS[row]]
        drawn = jitted(params, *put((prompts, LENGTHS[rows], IDS[rows])), jax.random.key(seed))
        return np.asarray(drawn.tokens), np.asarray(drawn.length)

    return run


def probabilities(prompt, temperature):
    return llama.softmax(llama.logits(PARAMS, tiny.CONFIG, prompt)[-1] / temperature)


def p_value(drawn, probability):
    """Of a chi-square test of `drawn` tokens; tokens expected fewer than five times share one cell."""
    expected, seen = probability * len(drawn), np.bincount(drawn, minlength=len(probability))
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    seen = np.append(seen[~rare], seen[rare].sum())
    return scipy.stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue


def test_frequencies_are_those_of_the_model(draw):
    """First tokens, and second tokens given the first, at temperature 0.8; the stop marker is a token like others."""
    row, eos = 0, int(np.argmax(probabilities(PROMPTS[0, :4], 0.8)))
    tokens, length = draw([row], samples=8192, T=2, eos_ids=(eos,))
    pairs = np.where(np.arange(2) < length[0][:, None], tokens[0], eos)  # what was drawn, the stop marker included
    prompt = PROMPTS[row, : LENGTHS[row]]
    assert p_value(pairs[:, 0], probabilities(prompt, 0.8)) > 1e-3
    assert p_value(pairs[:, 0], probabilities(prompt, 1.0)) < 1e-6  # the test tells the temperatures apart
    tested = 0
    for first in np.unique(pairs[length[0] > 0, 0]):
        second = pairs[(pairs[:, 0] == first) & (length[0] > 0), 1]
        if len(second) >= 200:
            assert p_value(second, probabilities([*prompt, first], 0.8)) > 1e-3, first
            tested += 1
    assert tested >= 5


def test_samples_of_different_examples_are_independent(draw):
    """The same prompt under many ids: frequencies again, now over ids instead of sample indices."""
    prompts, lengths = np.tile(PROMPTS[:1], (4096, 1)), np.full(4096, LENGTHS[0])
    options = dict(samples=1, max_new_tokens=1, temperature=0.8, top_p=1.0, eos_ids=(NEVER,))
    drawn = jax.jit(partial(sample, MODEL, **options))(PARAMS, prompts, lengths, np.arange(4096), jax.random.key(0))
    assert p_value(np.asarray(drawn.tokens).ravel(), probabilities(PROMPTS[0, : LENGTHS[0]], 0.8)) > 1e-3


@given(counts=st.lists(st.lists(st.integers(1, 6), min_size=7, max_size=7), min_size=3, max_size=3), k=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_nucleus(counts, k):
    """A token stays iff the tokens that are strictly likelier have less than `top_p` of the mass; ties stay."""
    counts, kept_by = np.array(counts), jax.jit(nucleus)
    totals = counts.sum(axis=1)
    for row, total in zip(counts, totals, strict=True):
        half = int(k * (total - 1)) + 0.5  # between two sums of counts, so that rounding cannot decide
        kept = [sum(row[row > count]) < half for count in row]
        probability = (row / total).astype(np.float32)
        np.testing.assert_array_equal(kept_by(probability[None], half / total)[0], np.where(kept, probability, 0))


def test_nucleus_of_everything_changes_nothing():
    probability = np.random.default_rng(0).dirichlet(np.ones(9), 2).astype(np.float32)
    np.testing.assert_array_equal(nucleus(probability, 1.0), probability)
    assert np.count_nonzero(nucleus(probability, 1e-9), axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("V", [1, 40, 128, 300])
def test_draw(V):
    """Frequencies are those of the weights, of any sum; what has no weight, first and last tokens too, never comes."""
    weights = np.random.default_rng(V).gamma(0.3, size=V).astype(np.float32) * 50
    if V > 1:
        weights[[0, V // 2, V - 1]] = 0
    keys = jax.random.split(jax.random.key(V), 20_000)
    drawn = np.asarray(sampler.draw(keys.reshape(-1, 4), np.tile(weights, (len(keys) // 4, 1)))).ravel()
    assert (weights[drawn] > 0).all()
    weights = weights.astype(np.float64)
    assert p_value(drawn, weights / weights.sum()) > 1e-3


def test_top_p_is_taken_after_the_temperature(draw):
    """What is sampled at all is the nucleus of the tempered distribution, with its frequencies renormalised."""
    tokens, _ = draw([3], samples=4096, T=1, temperature=1.6, top_p=0.7)
    p = probabilities(PROMPTS[3, : LENGTHS[3]], 1.6)
    order = np.argsort(-p)
    size = np.searchsorted(np.cumsum(p[order]), 0.7) + 1
    assert set(np.unique(tokens)) == set(order[:size]) and 3 < size < 39
    inside = np.where(np.isin(np.arange(len(p)), order[:size]), p, 0)
    assert p_value(tokens.ravel(), inside / inside.sum()) > 1e-3


def test_temperature_zero_is_the_argmax_of_the_full_forward(draw):
    tokens, length = draw(range(8), samples=2, temperature=0.0)
    assert (length == 6).all()
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])
    for row in range(8):
        sequence = list(PROMPTS[row, : LENGTHS[row]])
        for token in tokens[row, 0]:
            assert token == np.argmax(llama.logits(PARAMS, tiny.CONFIG, sequence)[-1])
            sequence.append(token)


def test_a_response_ends_at_its_stop_marker(draw):
    """Against responses that never stop: the same tokens up to the marker, zeros from there on, and their number."""
    endless, full = draw(range(8), samples=16)
    assert (full == 6).all()
    eos = int(np.bincount(endless.ravel()).argmax())
    stopped, length = draw(range(8), samples=16, eos_ids=(eos,))
    for whole, cut, n in zip(endless.reshape(-1, 6), stopped.reshape(-1, 6), length.ravel(), strict=True):
        before = list(whole).index(eos) if eos in whole else 6
        assert n == before
        assert list(cut) == [*whole[:before], *[0] * (6 - before)]
    assert set(length.ravel()) >= {0, 2, 6}


def test_a_response_ends_at_the_first_of_several_markers(draw):
    """Against the same responses cut by hand; one marker given twice is that marker."""
    endless, _ = draw(range(8), samples=16)
    markers = tuple(int(i) for i in np.bincount(endless.ravel()).argsort()[-2:])
    stopped, length = draw(range(8), samples=16, eos_ids=markers)
    for whole, cut, n in zip(endless.reshape(-1, 6), stopped.reshape(-1, 6), length.ravel(), strict=True):
        before = next((i for i, token in enumerate(whole) if token in markers), 6)
        assert n == before and list(cut) == [*whole[:before], *[0] * (6 - before)]
    once, twice = (draw(range(8), samples=16, eos_ids=ids) for ids in (markers[:1], markers[:1] * 2))
    np.testing.assert_array_equal(once[0], twice[0])


@given(rows=st.permutations(range(8)), shape=st.sampled_from([(8, 9), (5, 9), (3, 14)]))
@settings(max_examples=25, deadline=None)
def test_a_response_depends_on_its_example_alone(draw, rows, shape):
    """Whatever the batch size, the place in the batch, the padding of prompts and the companions."""
    tokens, length = draw(range(8), eos_ids=(3,))
    size, P = shape
    rows = list(rows)[:size]
    again, lengths = draw(rows, eos_ids=(3,), P=P)
    np.testing.assert_array_equal(again, tokens[rows])
    np.testing.assert_array_equal(lengths, length[rows])


@pytest.mark.parametrize("axes, tensor", [((8, 1, 1), 0), ((2, 2, 2), 0), ((1, 8, 1), 2)])
def test_a_response_does_not_depend_on_the_number_of_devices(draw, axes, tensor):
    """Nor on how the layers lie: one by one on many devices, as in an evaluation, and stacked on one."""
    mesh = sharding.decode_mesh(sharding.make_mesh(dict(zip(sharding.AXES, axes, strict=True))), tensor)
    layers = unstack(PARAMS)
    placed = jax.device_put(layers, sharding.shardings(mesh, layers))
    tokens, length = draw(range(8), eos_ids=(3,))
    spread, lengths = draw(range(8), eos_ids=(3,), params=placed, put=partial(sharding.put_batch, mesh))
    np.testing.assert_array_equal(spread, tokens)
    np.testing.assert_array_equal(lengths, length)


def test_keys_and_sample_indices_make_different_samples(draw):
    """Two seeds share no response, and the samples of one prompt differ."""
    tokens, _ = draw(range(8))
    other, _ = draw(range(8), seed=1)
    assert not (tokens == other).all(axis=-1).any()
    for responses in tokens:
        assert len({tuple(response) for response in responses}) == 4


@pytest.mark.parametrize("setting", [dict(temperature=0.0), dict(temperature=0.8), dict(temperature=0.8, top_p=0.9)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_drawn_from_logits_that_are_not_finite(draw, setting, value):
    """A token whose embedding is no number: what comes after it has the length -1, all else is as it was."""
    tokens, length = draw(range(8), samples=16, **setting)
    bad = int(PROMPTS[0, 2])
    embedding = {"embedding": np.where(np.arange(tiny.CONFIG.V)[:, None] == bad, value, PARAMS["embedding"])}
    again, lengths = draw(range(8), samples=16, params=jax.tree.map(np.float32, PARAMS | embedding), **setting)
    from_start = [bad in PROMPTS[row, : LENGTHS[row]] for row in range(8)]
    failed = (tokens[:, :, :-1] == bad).any(axis=2) | np.array(from_start)[:, None]
    assert 0 < failed.sum() < failed.size
    np.testing.assert_array_equal(lengths, np.where(failed, -1, length))
    np.testing.assert_array_equal(again[~failed], tokens[~failed])


def test_a_head_that_is_no_number_gives_no_token_at_all(draw):
    head = np.where(np.arange(tiny.CONFIG.V) == 5, np.nan, PARAMS["head"]).astype(np.float32)
    for setting in (dict(temperature=0.0), dict(), dict(top_p=0.5)):
        assert (draw(range(8), params=PARAMS | {"head": head}, **setting)[1] == -1).all()


@pytest.mark.parametrize("name, value", [("temperature", x) for x in (-1, np.nan, np.inf, 1e-30)])
def test_a_temperature_without_meaning_is_refused(draw, name, value):
    with pytest.raises(ValueError, match=name):
        draw([0], **{name: value})


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, np.nan])
def test_a_nucleus_without_meaning_is_refused(draw, value):
    with pytest.raises(ValueError, match="top_p"):
        draw([0], top_p=value)
