"""First-order influence: the sources sum to the optimizer's own update, and the error falls with its square."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.models import adapters
from premem_jax.models.architecture import Lora
from premem_jax.models.decoder import build, init, unstack
from premem_jax.models.nll import log_likelihood
from premem_jax.training.influence import (
    central_difference,
    first_order,
    influence,
    next_update,
    update_by_source,
    with_forward_mode,
)
from premem_jax.training.objectives import DPO, Responses
from premem_jax.training.optimizer import adamw
from premem_jax.training.step import init_state, train_step, weights
from tests import tiny
from tests.training.responses import batch_of

OPTIMIZER = dict(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=0.5)
MODEL, LOSS, RATE = build(tiny.CONFIG), Responses(DPO(0.3)), 1e-4
MICRO_BATCHES = 2


def batch(seed, B=4, T=9):
    rng = np.random.default_rng(seed)
    weights = np.zeros((B, 2, T), np.float32)
    weights[:, 0, 3:7], weights[:, 1, 3:6] = 1, 1
    tokens = rng.integers(1, tiny.CONFIG.V, (B, 2, T)).astype(np.int32)
    return batch_of(tokens, weights, MICRO_BATCHES, reference=rng.normal(-15, 2, (B, 2)).astype(np.float32))


def chosen(seed):
    """Tokens and weights of the chosen responses of a batch."""
    arrays = batch(seed)
    mine = np.isin(arrays["segments"][:, 0], arrays["responses"][:, 0])
    return {key: arrays[key][mine] for key in ("tokens", "weights")}


def decomposed(model, start, place=lambda arrays: arrays):
    """A state after two updates, the next update by its sources, and the state after it."""
    bound = model, LOSS, adamw(**OPTIMIZER), MICRO_BATCHES
    step = jax.jit(lambda state, arrays: train_step(*bound, state, arrays, RATE)[0])
    state = init_state(start, adamw(**OPTIMIZER))
    for seed in range(2):
        state = step(state, place(batch(seed)))
    sources = jax.jit(functools.partial(next_update, model, LOSS, MICRO_BATCHES, **OPTIMIZER))
    parts = sources(state, place(batch(2)), RATE)
    return state, parts, step(state, place(batch(2)))


@pytest.fixture(scope="module")
def plain():
    return decomposed(MODEL, jax.device_put(tiny.parameters()))


@pytest.fixture(scope="module")
def of_adapters():
    """The same with adapters, which alone are trained, and which do something already."""
    config = dataclasses.replace(tiny.CONFIG, lora=Lora(rank=2, alpha=6.0, targets=("q", "o", "up")))
    model, key = build(config), jax.random.key(1)
    trained, frozen = adapters.split(jax.jit(init, static_argnums=0)(config, key))
    trained = jax.tree.map(lambda x: 0.2 * jax.random.normal(key, x.shape), trained)
    return model, *decomposed(model, adapters.join(trained, frozen))


@pytest.mark.slow
def test_the_sources_sum_to_the_update_that_is_made(plain):
    check_sum(*plain)


@pytest.mark.slow
def test_the_sources_sum_to_the_update_of_adapters(of_adapters):
    check_sum(*of_adapters[1:])


def check_sum(before, parts, after):
    assert set(parts) == {"chosen", "rejected", "momentum", "decay"}
    total = jax.tree.map(lambda *x: sum(x), *parts.values())
    made = jax.tree.map(
        lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), after["params"], before["params"]
    )
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(made), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-7)  # rounding of the parameters themselves
    assert all(optax_norm(part) > 1e-5 for part in parts.values())


def optax_norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))


@pytest.mark.slow
def test_forward_mode_agrees_with_central_differences_and_with_what_happens(plain):
    check_effects(MODEL, *plain)


@pytest.mark.slow
def test_forward_mode_through_adapters_agrees_with_central_differences_and_with_what_happens(of_adapters):
    check_effects(*of_adapters)


def check_effects(model, before, parts, after):
    tokens, mask = chosen(5).values()
    trained, frozen = adapters.split(weights(before))
    score = jax.jit(lambda trained: log_likelihood(model, adapters.join(trained, frozen), tokens, mask))
    found = jax.jit(functools.partial(influence, model))(weights(before), parts, tokens, mask)
    for name, direction in parts.items():
        cheap = np.asarray(central_difference(score, trained, direction))
        np.testing.assert_allclose(found[name], cheap, rtol=1e-3, atol=3e-4 * np.abs(found[name]).max())
    actual = np.asarray(score(after["params"])) - np.asarray(score(trained))
    total = sum(np.asarray(x) for x in found.values())
    np.testing.assert_allclose(actual, total, atol=0.05 * np.abs(total).max())


DEEP = dataclasses.replace(tiny.CONFIG, L=5)  # layers that are scanned, and not unrolled


def effects(model, start, place=lambda arrays: arrays):
    """Of the next update by its sources, on the log-likelihood of four responses."""
    state, parts, _ = decomposed(model, start, place)
    seen = place(chosen(5))
    found = jax.jit(functools.partial(influence, model))(state["params"], parts, *seen.values())
    return jax.tree.map(np.asarray, found)


@pytest.mark.slow
def test_it_is_the_same_under_rematerialization_scan_and_eight_devices():
    params = jax.device_put(tiny.parameters(DEEP))
    expected = effects(build(DEEP), unstack(params))  # one layer after another
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    others = {
        "scan": effects(build(DEEP), params),
        "remat on eight devices": effects(
            build(DEEP, remat="full", vocab_chunks=4, mesh=mesh),
            jax.device_put(tiny.parameters(DEEP), sharding.shardings(mesh, params)),
            lambda arrays: sharding.put_batch(mesh, arrays),
        ),
    }
    for found in others.values():
        for name, effect in expected.items():
            np.testing.assert_allclose(found[name], effect, rtol=1e-3, atol=3e-4 * np.abs(effect).max())


def test_the_probe_goes_without_kernels_that_lack_forward_mode():
    for name in ("auto", "splash", "cudnn"):
        model = with_forward_mode(build(tiny.CONFIG, attention=name), None)
        assert model.bind(tiny.parameters()).self_attention.backend == "reference"


# ---- In float64 ------------------------------------------------------------------------------------------------------


def network(params, x):
    """Log-probabilities of a small network over four classes."""
    return jax.nn.log_softmax(jnp.tanh(x @ params["a"]) @ params["b"])


def slope(wrong):
    """Of log error against log ‖Δθ‖ over four decades, for an AdamW update from a state with momentum."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {"a": jnp.array(rng.normal(size=(5, 7))), "b": jnp.array(rng.normal(size=(7, 4)))}
        x, y, seen = jnp.array(rng.normal(size=(6, 5))), rng.integers(4, size=6), jnp.array(rng.normal(size=(3, 5)))
        optimizer = adamw(**OPTIMIZER | dict(eps=1e-3))
        state = init_state(params, optimizer)
        gradient = jax.grad(lambda p, k: -jnp.mean(network(p, x)[jnp.arange(6), (y + k) % 4]))
        _, state["opt_state"] = optimizer.update(gradient(params, 1), state["opt_state"], params)
        errors, sizes = [], []
        for rate in np.geomspace(1e-1, 1e-5, 9):
            halves = {"one": gradient(params, 0), "other": jax.tree.map(jnp.zeros_like, params)}
            parts = update_by_source(halves, state, rate, **OPTIMIZER | dict(eps=1e-3))
            made, _ = optimizer.update(gradient(params, 0), state["opt_state"], params)
            after = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, made)
            if wrong:
                parts.pop(wrong)
            predicted = sum(first_order(lambda p: network(p, seen), params, parts).values())
            errors.append(float(jnp.abs(network(after, seen) - network(params, seen) - predicted).max()))
            sizes.append(optax_norm(jax.tree.map(lambda a, b: a - b, after, params)))
    return np.polyfit(np.log(sizes[2:]), np.log(errors[2:]), 1)[0]


def test_the_error_of_the_prediction_is_of_second_order():
    assert slope(wrong=None) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("missing", ["one", "momentum", "decay"])
def test_a_prediction_without_one_of_the_sources_is_of_first_order(missing):
    assert slope(missing) == pytest.approx(1, abs=0.05)
