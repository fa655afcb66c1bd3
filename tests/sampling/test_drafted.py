"""Responses whose beginning their reference decides, against the plain sampler and the chances of a float64 model."""

from functools import cache, partial

import jax
import numpy as np
import pytest
import scipy.stats

from premem_jax import sharding
from premem_jax.models.decoder import build, unstack
from premem_jax.sampling.drafted import follow
from premem_jax.sampling.sampler import sample
from tests import tiny
from tests.models import llama

MODEL = build(tiny.CONFIG)
PARAMS = tiny.parameters()
TIED = PARAMS | {"head": PARAMS["head"][:, np.arange(tiny.CONFIG.V) // 2 * 2]}  # each token is as likely as the next
B, P, T = 16, 7, 10
STOPS = tuple(range(6))
LENGTHS = (np.arange(B) % P + 1).astype(np.int32)
PROMPTS = np.random.default_rng(5).integers(6, tiny.CONFIG.V, (B, P)).astype(np.int32)
IDS = np.random.default_rng(6).permutation(10**6)[:B].astype(np.int32)
ALL = PROMPTS, LENGTHS, IDS
SETTINGS = dict(samples=6, longest=T, temperature=0.8, top_p=1.0, eos_ids=STOPS)
same = np.testing.assert_array_equal


@cache
def program(function, **settings):
    return jax.jit(partial(function, MODEL, **settings))


def rows(prompts, texts):
    """Arrays of prompts, each with a text behind it."""
    arrays = np.full((len(texts), P + T + 6), 11, np.int32)
    for b, text in enumerate(texts):
        n = prompts[1][b]
        arrays[b, : n + len(text)] = [*prompts[0][b, :n], *text]
    return arrays, *prompts[1:]


def go_on(prompts, texts, begun, params, seed, changes, put=lambda x: x):
    sampling, (tokens, lengths, ids) = program(sample, max_new_tokens=T, **SETTINGS | changes), rows(prompts, texts)
    drawn = sampling(params, *put((tokens, lengths, ids)), jax.random.key(seed), begun_BR=put(begun))
    return np.asarray(drawn.tokens), np.asarray(drawn.length)


def plain(params=PARAMS, prompts=ALL, seed=0, **changes):
    """Tokens and lengths of the responses."""
    size = len(prompts[2])
    return go_on(prompts, [[]] * size, np.zeros((size, SETTINGS["samples"]), np.int32), params, seed, changes)


def drafted(texts, params=PARAMS, prompts=ALL, seed=0, put=lambda x: x, **changes):
    """The same by the references `texts`: how many tokens they decided, and whether they decided the whole response."""
    tokens, lengths, ids = rows(prompts, texts)
    given = tokens, lengths, np.array(list(map(len, texts)), np.int32), ids
    found = program(follow, **SETTINGS | changes)(params, *put(given), jax.random.key(seed))
    kept, ended = map(np.asarray, found)
    own, more = go_on(prompts, texts, kept, params, seed, changes, put)
    assert not more[ended].any()  # they end again at once
    tokens = np.zeros_like(own)
    for b, r in np.ndindex(*kept.shape):
        whole = [*texts[b][: kept[b, r]], *own[b, r, : more[b, r]]]
        tokens[b, r, : len(whole)] = whole
    return tokens, kept + more, kept, ended


def references(**changes):
    """What the last sample of each prompt says, with a stop marker, or with tokens beyond the longest response."""
    tokens, length = plain(**changes)
    return [[*own[:n], *([2] if n < T else [7, 7, 2])] for own, n in zip(tokens[:, -1], length[:, -1], strict=True)]


@pytest.mark.parametrize("changes", [dict(), dict(top_p=0.6), dict(params=TIED, top_p=0.6), dict(temperature=0.0)])
def test_responses_are_those_of_the_plain_sampler(changes):
    """References decide nothing, a part, or all: up to a stop marker, or to the longest text."""
    texts = references(**changes)
    texts[::4] = [[*text[:-1], 7, 8, 2] for text in texts[::4]]  # these go on where their sample stops
    expected, (*found, kept, ended) = plain(**changes), drafted(texts, **changes)
    same(found[0], expected[0])
    same(found[1], expected[1])
    size = np.array(list(map(len, texts)))[:, None]
    assert (ended & (kept == T)).any() and (ended & (kept < np.minimum(size - 1, T))).any()  # a stop within
    if changes.get("temperature") != 0:  # then all samples are the reference
        assert (ended & (kept == size - 1) & (kept > 0)).any()
        assert (kept[~ended] == 0).any() and (kept[~ended] > 2).any()


def test_a_reference_without_a_stop_marker_is_gone_on_from():
    texts = [text[: min(1 + b % 4, len(text) - 1)] for b, text in enumerate(references())]
    expected, (*found, kept, ended) = plain(), drafted(texts)
    same(found[0], expected[0])
    same(found[1], expected[1])
    assert (~ended & (kept == np.array(list(map(len, texts)))[:, None]) & (kept > 0)).any()


def test_sharded():
    """On eight devices, with the vocabulary cut in two, as on one."""
    mesh = sharding.decode_mesh(sharding.make_mesh(dict(data=2, fsdp=2, tensor=2)))
    texts, layers = references(), unstack(PARAMS)
    placed = jax.device_put(layers, sharding.shardings(mesh, layers))
    for mine, theirs in zip(
        drafted(texts, params=placed, put=partial(sharding.put_batch, mesh)), drafted(texts), strict=True
    ):
        same(mine, theirs)


def test_texts_are_distributed_as_they_should_be():
    """Of one prompt under many ids. A response leaves at each token with the chance that a float64 model gives it; and
    chi-square of the first three tokens against plain samples with another key. Rare texts share one cell."""
    many, row = 2048, 5
    prompts = np.tile(PROMPTS[row], (many, 1)), np.tile(LENGTHS[row], many), np.arange(many, dtype=np.int32)
    text = [int(token) for token in plain()[0][row, 1]]
    mine, _, kept, _ = drafted([text] * many, prompts=prompts, seed=1)
    logits = llama.logits(PARAMS, tiny.CONFIG, [*PROMPTS[row, : LENGTHS[row]], *text])[LENGTHS[row] - 1 : -1]
    probability = llama.softmax(logits / 0.8)
    chance = np.where(np.isin(text, STOPS), 0, np.take_along_axis(probability, np.array(text)[:, None], axis=1)[:, 0])
    leaves = -np.diff([1, *np.cumprod(chance), 0])
    often = leaves > 1e-3
    assert often.sum() > 3
    seen, due = np.bincount(kept.ravel(), minlength=len(leaves)), leaves * kept.size
    seen, due = (np.append(x[often], x[~often].sum() + 1e-9) for x in (seen, due))
    assert scipy.stats.chisquare(seen, due).pvalue > 1e-3

    theirs, _ = plain(prompts=prompts)
    drawn = np.concatenate([drawn[:, :, :3].reshape(-1, 3) for drawn in (theirs, mine)])
    names, which = np.unique(drawn, axis=0, return_inverse=True)
    table = np.stack([np.bincount(half, minlength=len(names)) for half in np.split(which.ravel(), 2)])
    rare = table.sum(axis=0) < 20
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True) + 1], axis=1)
    assert table.shape[1] > 20 and scipy.stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("name, value", [("temperature", -1), ("top_p", 0.0)])
def test_settings_without_meaning_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        drafted(references(), **{name: value})
