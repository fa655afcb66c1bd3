"""The decoder against a float64 NumPy one, and its cached, padded and rematerialised forms against each other."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax.errors import UserError
from premem_jax.models.decoder import Cache, build, init, unstack
from premem_jax.models.nll import token_nll
from tests import tiny
from tests.models import llama
from tests.models.shapes import SHAPES

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


@pytest.mark.parametrize("layers", [lambda params: params, unstack], ids=("stacked", "one by one"))
@every_shape
def test_cached_decoding_equals_the_full_forward(config, layers):
    """Ragged prompts are prefilled once; R samples of each follow them for a while, then decode token by token."""
    params, model, R, steps = tiny.parameters(config), build(config), 3, 5
    prompts_BP, lengths = sequences(config, seed=1), np.array(LENGTHS)
    own_XT = np.random.default_rng(2).integers(0, config.V, (len(lengths) * R, steps)).astype(np.int32)
    kept_BR = np.maximum(lengths[:, None] - [0, 2, 7], 1)

    @jax.jit
    def prefill(params, prompts_BP):
        hidden, prompt = model.bind(params)(prompts_BP)
        return model.bind(params).logits(hidden), prompt

    @jax.jit
    def step(params, token_X, prompt, own, t):
        decoder = model.bind(params)
        mask_BRP = jnp.arange(T) < kept_BR[..., None]
        hidden, own = decoder.decode(token_X, kept_BR.reshape(-1) + t, prompt, mask_BRP, own, t)
        return decoder.logits(hidden), own

    logits_BPV, prompt = prefill(layers(params), prompts_BP)
    for row, tokens, length in zip(np.asarray(logits_BPV), prompts_BP, lengths, strict=True):
        expected = llama.logits(params, config, tokens[:length])
        np.testing.assert_allclose(row[:length], expected, atol=2e-5, rtol=1e-5)
    rubbish = prompt[0].empty(len(own_XT), steps)
    rubbish = Cache(*(jax.random.normal(jax.random.key(i), cache.shape) for i, cache in enumerate(rubbish)))
    own, decoded = [rubbish] * config.L, []
    for t in range(steps):
        logits_XV, own = step(layers(params), own_XT[:, t], prompt, own, t)
        decoded.append(np.asarray(logits_XV))
    for x, tokens in enumerate(own_XT):
        joined = np.concatenate([prompts_BP[x // R][: kept_BR.reshape(-1)[x]], tokens])
        expected = llama.logits(params, config, joined)[-steps:]
        np.testing.assert_allclose([row[x] for row in decoded], expected, atol=2e-5, rtol=1e-5)


def test_positions_are_relative():
    """Shifting every position changes no logit, stretching them does."""
    params, tokens_BT, model = tiny.parameters(), sequences(tiny.CONFIG), build(tiny.CONFIG)

    @jax.jit
    def at(positions_BT):
        decoder = model.bind(params)
        return decoder.logits(decoder(tokens_BT, positions_BT=positions_BT)[0])

    positions = jnp.arange(T)[None]
    np.testing.assert_allclose(at(positions + 50), at(positions), atol=5e-5)
    assert np.abs(at(2 * positions) - at(positions)).max() > 0.1


def gradient(params, tokens_BT, config=tiny.CONFIG, **options):
    """Compiled gradient of the likelihood of the tokens, and what it is at `params`."""
    model = build(config, **options)
    compiled = jax.jit(jax.grad(lambda p: jnp.sum(token_nll(model, p, tokens_BT)))).lower(params).compile()
    return compiled, compiled(params)


def test_remat_gives_the_same_gradients_with_less_memory():
    config = dataclasses.replace(tiny.CONFIG, L=6)
    params, tokens_BT = tiny.parameters(config), np.tile(sequences(config), (4, 8))
    compiled, plain = gradient(params, tokens_BT, config)
    memory = [compiled.memory_analysis().temp_size_in_bytes]
    for remat in "dots", "full":
        compiled, saved = gradient(params, tokens_BT, config, remat=remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), plain, saved)
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))
    assert memory[0] > 1.2 * memory[1] > 1.2 * 1.2 * memory[2]


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("shape", ["grouped", "gemma"])
def test_the_backward_pass_reads_the_weights_that_are_there(shape, remat):
    """What a forward scan hands to the backward one besides its result holds no weight."""
    config = dataclasses.replace(SHAPES[shape], L=6)
    model = build(config, dtype="bfloat16", remat=remat)
    params, tokens_BT = tiny.parameters(config), sequences(config)[:3, :11]  # sizes that no weight has
    program = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(token_nll(model, p, tokens_BT))))(params)
    layers = 6 // len(config.windows)
    forward = next(e for e in program.eqns if e.primitive.name == "scan" and e.params["length"] == layers)
    kept = [variable.aval.shape for variable in forward.outvars[forward.params["num_carry"] :]]
    weights = [x.shape[1:] for x in jax.tree.leaves(params["layers"]) if x.ndim > 2]
    assert kept and not [(a, b) for a in kept for b in weights if a[-len(b) :] == b]


@pytest.mark.parametrize("config", [tiny.CONFIG, SHAPES["gemma"]], ids=("llama", "gemma"))
def test_vocabulary_chunks_change_no_likelihood_and_no_gradient(config):
    """Against the log-softmax of whole logits, which holds V of them for each token."""
    params, tokens_BT = tiny.parameters(config), sequences(config)
    logits = logits_of(build(config), params, tokens_BT)
    whole = -jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens_BT[:, 1:, None], axis=-1)[..., 0]
    _, expected = gradient(params, tokens_BT, config)
    for chunks in 1, 2, 8:
        nll = jax.jit(partial(token_nll, build(config, vocab_chunks=chunks)))(params, tokens_BT)
        np.testing.assert_allclose(nll[:, 1:], whole, rtol=1e-5, atol=1e-5)
        _, found = gradient(params, tokens_BT, config, vocab_chunks=chunks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), expected, found)


def test_vocabulary_chunks_hold_fewer_logits():
    config = dataclasses.replace(tiny.CONFIG, V=4096, L=1)
    params, tokens_BT = tiny.parameters(config), np.tile(sequences(config), (4, 1))
    temporary = [
        gradient(params, tokens_BT, config, vocab_chunks=c)[0].memory_analysis().temp_size_in_bytes for c in (1, 8)
    ]
    logits = 4 * tokens_BT.size * config.V
    assert temporary[0] > logits and temporary[1] < temporary[0] - 0.5 * logits


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(remat="most"), "model.remat='most': choose none, dots, full"),
        (dict(vocab_chunks=3), "model.vocab_chunks=3 does not divide the vocabulary of 40"),
        (dict(attention="flash"), "model.attention='flash': choose auto, reference, splash, cudnn"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build(tiny.CONFIG, **options)


def test_bfloat16_computes_near_fp32():
    params, tokens_BT = tiny.parameters(), sequences(tiny.CONFIG)
    model = build(tiny.CONFIG, dtype="bfloat16")
    hidden, caches = jax.jit(lambda p, t: model.bind(p)(t))(params, tokens_BT)
    assert {x.dtype for x in jax.tree.leaves((hidden, caches))} == {jnp.dtype("bfloat16")}
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
