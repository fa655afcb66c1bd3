"""Examples that share rows give the loss and the gradient of examples that have their own."""

import dataclasses
import functools
from functools import partial

import jax
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.data.packing import ALONE, Packing
from premem_jax.data.pairs import collate_pairs
from premem_jax.data.reader import train_batches
from premem_jax.models.architecture import MATRICES, lora_of
from premem_jax.models.decoder import build
from premem_jax.models.nll import target_nll
from premem_jax.training import objectives
from premem_jax.training.influence import norms_of_g
from premem_jax.training.losses import NEXT_TOKEN, needed
from premem_jax.training.objectives import Likelihood, Responses
from premem_jax.training.step import loss_gradient
from tests import tiny
from tests.models.shapes import SHAPES

EXAMPLES = 11  # of a batch of 12
every_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gemma" else pytest.mark.slow) for name in SHAPES]
)


def near(found, expected):
    """To 1e-5 of the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def supervised(packing):
    """An update's arrays, with 11 examples of 12."""
    ((_, arrays),) = train_batches(tiny.data(EXAMPLES), 0, 1, batch=12, seed=3, buckets=(16,), packing=packing)
    return needed(NEXT_TOKEN, arrays)


def mean_of(model, params, arrays, micro_batches=1):
    """Mean loss, count of tokens and gradient."""
    return jax.jit(lambda p, x: loss_gradient(model, NEXT_TOKEN, p, x, micro_batches))(params, arrays)


@functools.cache
def alone(name):
    config = dataclasses.replace(SHAPES[name], V=tiny.tokenizer().vocab_size)
    return mean_of(build(config), tiny.parameters(config), supervised(ALONE))


@every_family
def test_loss_and_gradient_are_those_of_examples_alone(name):
    config = dataclasses.replace(SHAPES[name], V=tiny.tokenizer().vocab_size)
    arrays = supervised(Packing(3, (20, 47)))
    assert arrays["tokens"].shape == (3, 47) and set(arrays["segments"].ravel()) == set(range(EXAMPLES + 1))
    near(mean_of(build(config), tiny.parameters(config), arrays), alone(name))


@every_family
def test_likelihoods_are_those_of_examples_alone(name):
    """Without the gradient, as examples are scored."""
    config = dataclasses.replace(SHAPES[name], V=tiny.tokenizer().vocab_size)
    score = jax.jit(partial(target_nll, build(config), examples=12))
    shared, alone = supervised(Packing(3, (20, 47))), supervised(ALONE)
    found, expected = (score(tiny.parameters(config), *arrays.values()) for arrays in (shared, alone))
    assert len(shared) == 3 and len(alone) == 2 and float(expected[0].std()) > 0.01
    near(found, expected)


def test_on_eight_devices_with_rematerialization_and_micro_batches():
    """Gemma's windows, soft-caps and tied embedding; each device has parts of two rows, and so has each micro-batch."""
    config = dataclasses.replace(SHAPES["gemma"], V=tiny.tokenizer().vocab_size)
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    model = build(config, remat="full", mesh=mesh)
    params = jax.device_put(tiny.parameters(config), sharding.shardings(mesh, tiny.parameters(config)))
    arrays = sharding.put_batch(mesh, supervised(Packing(8, (20, 47), micro_batches=2)))
    assert arrays["tokens"].shape == (8, 20)
    near(mean_of(model, params, arrays, micro_batches=2), alone("gemma"))


# ---- Objectives ------------------------------------------------------------------------------------------------------

ASKED = dict(beta=0.3, label_smoothing=0.1, reference_free=False, delta=1.0, weight=0.2, eta=1.0)
LOSSES = {name: Responses(objectives.objective(name, ASKED)) for name in objectives.OBJECTIVES}
LOSSES |= {"gate": Responses(objectives.DPO(0.3), gate=0.05), "rejected": Responses(objectives.DPO(0.3), only=1)}
LOSSES["both"] = Responses(Likelihood())


@functools.cache
def pairs():
    data = tiny.data(EXAMPLES)
    others = [np.concatenate([target[:-1], target[1:]]) for target in data.targets]
    return dataclasses.replace(data, rejected=others)


ADAPTERS = lora_of(rank=4, alpha=8.0, targets=[f"{name}_proj" for name in MATRICES])


@pytest.mark.parametrize(
    "lora", [None, pytest.param(ADAPTERS, marks=pytest.mark.slow)], ids=("all weights", "adapters")
)
def test_losses_on_responses_are_those_of_responses_alone(lora):
    """Of two micro-batches, with a prompt missing; a row holds responses to several prompts."""
    config = dataclasses.replace(tiny.config(), lora=lora)
    model, params = build(config), tiny.parameters(config)
    losses = {name: loss for name, loss in LOSSES.items() if not lora or name == "dpo"}

    @jax.jit
    def all_of_them(params, arrays):
        found = {name: loss_gradient(model, loss, params, arrays, 2) for name, loss in losses.items()}
        return found, norms_of_g(model, LOSSES["dpo"], params, arrays)

    reference = np.random.default_rng(1).normal(-25, 3, (EXAMPLES, 2))
    given = dict(batch=12, buckets=(32,), reference_ER=reference)
    apart, shared = (
        collate_pairs(pairs(), range(EXAMPLES), **given, packing=packing)
        for packing in (Packing(micro_batches=2), Packing(4, (100,), micro_batches=2))
    )
    assert apart["tokens"].shape == (24, 32) and shared["tokens"].shape == (4, 100)
    near(all_of_them(params, shared), all_of_them(params, apart))
