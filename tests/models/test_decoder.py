"""The decoder against a float64 NumPy one, and its cached, padded and rematerialised forms against each other."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax.models.config import GEMMA2, RopeScaling
from premem_jax.models.decoder import Cache, build, init
from tests import tiny
from tests.models import llama

SHAPES = {
    "grouped": tiny.CONFIG,
    "multi-query": dataclasses.replace(tiny.CONFIG, K=1, rope_theta=10_000.0),
    "multi-head, tied": dataclasses.replace(tiny.CONFIG, K=4, tied_embedding=True, norm_eps=1e-2),
    "stretched positions": dataclasses.replace(tiny.CONFIG, rope_scaling=RopeScaling(8.0, 0.5, 2.0, 16)),
    "gemma": dataclasses.replace(
        tiny.CONFIG,
        **GEMMA2 | dict(rope_theta=100.0, attention_softcap=2.0, final_softcap=5.0),
        L=4,
        H=12,
        query_scale=0.4,
        windows=(4, None),
    ),
}

every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
LENGTHS = (9, 3, 12, 1)
T = 12


def sequences(config, seed=0):
    """Right-padded tokens (B, T) with rubbish, not zeros, in the padding."""
    return np.random.default_rng(seed).integers(0, config.V, (len(LENGTHS), T)).astype(np.int32)


def logits_of(model, params, tokens_BT):
    decoder = model.bind(params)
    return decoder.logits(decoder(tokens_BT)[0])


@every_shape
def test_equals_the_numpy_decoder(config):
    params, tokens_BT = tiny.parameters(config), sequences(config)
    ours = np.asarray(jax.jit(partial(logits_of, build(config)))(params, tokens_BT))
    assert ours.dtype == np.float32 and ours.shape == (*tokens_BT.shape, config.V)
    for row, tokens in zip(ours, tokens_BT, strict=True):
        expected = llama.logits(params, config, tokens)
        assert expected.std() > 0.5
        np.testing.assert_allclose(row, expected, atol=2e-5, rtol=1e-5)


def test_padding_never_changes_earlier_logits():
    params, tokens_BT = tiny.parameters(), sequences(tiny.CONFIG)
    forward = jax.jit(partial(logits_of, build(tiny.CONFIG)))
    padded, ragged = np.asarray(forward(params, tokens_BT)), np.arange(T) < np.array(LENGTHS)[:, None]
    other = np.asarray(forward(params, np.where(ragged, tokens_BT, 0)))
    np.testing.assert_array_equal(padded[ragged], other[ragged])
    assert not np.array_equal(padded[~ragged], other[~ragged])
    longer = forward(params, np.pad(tokens_BT, [(0, 0), (0, 5)], constant_values=7))
    np.testing.assert_allclose(longer[:, :T], padded, atol=1e-5)


def test_no_gradient_flows_to_later_tokens():
    """Position t's logits have a gradient with respect to the embedding at s exactly where s <= t."""
    config = dataclasses.replace(tiny.CONFIG, V=T)  # token t stands at position t: rows of the embedding are positions
    params, model = tiny.parameters(config), build(config)

    def at_position(embedding):
        out = logits_of(model, params | {"embedding": embedding}, jnp.arange(T, dtype=jnp.int32)[None])[0]
        return jnp.sum(jnp.sin(out), axis=-1)

    jacobian = np.asarray(jax.jit(jax.jacrev(at_position))(params["embedding"]))
    reached = np.abs(jacobian).max(axis=-1) > 0
    np.testing.assert_array_equal(reached, np.tril(np.ones((T, T), bool)))


@every_shape
def test_cached_decoding_equals_the_full_forward(config):
    """Ragged prompts are prefilled once; R samples of each then decode token by token."""
    params, model, R, steps = tiny.parameters(config), build(config), 3, 5
    prompts_BP, lengths = sequences(config, seed=1), np.array(LENGTHS)
    own_XT = np.random.default_rng(2).integers(0, config.V, (len(lengths) * R, steps)).astype(np.int32)

    @jax.jit
    def prefill(params, prompts_BP):
        return model.bind(params)(prompts_BP)[1]

    @jax.jit
    def step(params, token_X, prompt, own, t):
        decoder = model.bind(params)
        position_X = jnp.repeat(jnp.asarray(lengths), R) + t
        mask_BP = jnp.arange(T) < lengths[:, None]
        hidden, own = decoder.decode(token_X, position_X, prompt, mask_BP, own, t)
        return decoder.logits(hidden), own

    prompt = prefill(params, prompts_BP)
    rubbish = jax.random.normal(jax.random.key(3), (config.L, len(own_XT), config.K, steps, config.H))
    own, decoded = Cache(rubbish, rubbish), []
    for t in range(steps):
        logits_XV, own = step(params, own_XT[:, t], prompt, own, t)
        decoded.append(np.asarray(logits_XV))
    for x, tokens in enumerate(own_XT):
        joined = np.concatenate([prompts_BP[x // R][: lengths[x // R]], tokens])
        expected = llama.logits(params, config, joined)[-steps:]
        np.testing.assert_allclose([row[x] for row in decoded], expected, atol=2e-5, rtol=1e-5)


def test_positions_are_relative():
    """Shifting every position changes no logit, stretching them does."""
    params, tokens_BT, model = tiny.parameters(), sequences(tiny.CONFIG), build(tiny.CONFIG)

    @jax.jit
    def at(positions_BT):
        decoder = model.bind(params)
        return decoder.logits(decoder(tokens_BT, positions_BT)[0])

    positions = jnp.arange(T)[None]
    np.testing.assert_allclose(at(positions + 50), at(positions), atol=5e-5)
    assert np.abs(at(2 * positions) - at(positions)).max() > 0.1


def test_remat_gives_the_same_gradients():
    params, tokens_BT = tiny.parameters(), sequences(tiny.CONFIG)

    def gradient(remat):
        model = build(tiny.CONFIG, remat=remat)
        loss = lambda p: jnp.sum(jax.nn.log_softmax(logits_of(model, p, tokens_BT))[..., 0])
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat
        return jax.jit(jax.grad(loss))(params)

    plain, saved = gradient(False), gradient(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, saved)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))


def test_bfloat16_computes_near_fp32():
    params, tokens_BT = tiny.parameters(), sequences(tiny.CONFIG)
    model = build(tiny.CONFIG, dtype="bfloat16")
    hidden, cache = jax.jit(lambda p, t: model.bind(p)(t))(params, tokens_BT)
    assert hidden.dtype == cache.k.dtype == cache.v.dtype == jnp.bfloat16
    half = jax.jit(partial(logits_of, model))(params, tokens_BT)
    full = jax.jit(partial(logits_of, build(tiny.CONFIG)))(params, tokens_BT)
    assert half.dtype == jnp.float32
    error = np.abs(np.asarray(half - full)).mean() / np.std(full)
    assert 1e-4 < error < 0.03  # eight bits of mantissa: about 0.4 % per rounding


@every_shape
def test_parameter_count_is_that_of_the_tree(config):
    leaves = jax.tree.leaves(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    assert config.parameters == sum(leaf.size for leaf in leaves)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_initial_parameters():
    """Different keys give different parameters, no two layers are equal, and deviations follow the fan-in."""
    config = dataclasses.replace(tiny.CONFIG, V=500)
    one, two = map(jax.jit(partial(init, config)), (jax.random.key(0), jax.random.key(1)))
    assert not np.array_equal(one["embedding"], two["embedding"])
    q, o = np.asarray(one["layers"]["attention"]["q"]), np.asarray(one["layers"]["attention"]["o"])
    assert not np.array_equal(q[0], q[1])
    deviations = [np.std(x) for x in (one["embedding"], one["head"], q, o, one["layers"]["mlp"]["down"])]
    expected = [1, 32**-0.5, 32**-0.5, (32 * 4) ** -0.5, (48 * 4) ** -0.5]  # o and down also shrink by 2 L
    np.testing.assert_allclose(deviations, expected, rtol=0.05)
