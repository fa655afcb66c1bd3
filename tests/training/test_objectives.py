"""Objectives on responses against closed forms in NumPy, and their gradient against two supervised ones."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax import keys
from premem_jax.models.decoder import build
from premem_jax.models.nll import log_likelihood
from premem_jax.training import objectives
from premem_jax.training.losses import NEXT_TOKEN
from premem_jax.training.measures import pair_measures
from premem_jax.training.objectives import DPO, IPO, SPPO, Advantage, Ascent, Likelihood, Responses, SLiC
from tests import tiny
from tests.training.responses import batch_of

sigmoid = lambda x: 1 / (1 + math.exp(-x))

# Each objective, and its value as the paper that made it writes it: of l⁺, l⁻ and those of the reference.
FORMS = {
    "sft on both": (Likelihood(), lambda lc, lr, rc, rr: -lc - lr),
    "ascent": (Ascent(), lambda lc, lr, rc, rr: lr),
    "dpo": (DPO(0.3), lambda lc, lr, rc, rr: -math.log(sigmoid(0.3 * ((lc - rc) - (lr - rr))))),
    "smoothed dpo": (
        DPO(0.3, label_smoothing=0.2),
        lambda lc, lr, rc, rr: (
            -0.8 * math.log(sigmoid(0.3 * (lc - rc - lr + rr))) - 0.2 * math.log(sigmoid(-0.3 * (lc - rc - lr + rr)))
        ),
    ),
    "reference-free dpo": (
        DPO(0.5, reference_free=True),
        lambda lc, lr, rc, rr: math.log1p(math.exp(-0.5 * (lc - lr))),
    ),
    "ipo": (IPO(0.4), lambda lc, lr, rc, rr: ((lc - rc - lr + rr) - 1 / 0.8) ** 2),
    "slic": (SLiC(delta=1.5, weight=0.2), lambda lc, lr, rc, rr: max(0.0, 1.5 - lc + lr) - 0.2 * lc),
    "sppo": (SPPO(0.6), lambda lc, lr, rc, rr: (lc - rc - 0.3) ** 2 + (lr - rr + 0.3) ** 2),
}


def softmax_rows(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def likelihood(z, labels):
    """Σ_t log softmax(z_t)[y_t] in float64."""
    return float(np.log(softmax_rows(z)[np.arange(len(labels)), labels]).sum())


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_logit_gradient_is_the_coefficient_times_prediction_minus_label(name, seed):
    """Central differences in float64 of the written form, over every logit of both responses."""
    objective, form = FORMS[name]
    rng = np.random.default_rng(seed)
    z = [rng.normal(size=(length, 5)) for length in (3, 2)]
    labels = [rng.integers(5, size=len(each)) for each in z]
    reference = rng.normal(-4, 1.5, size=2)
    value = lambda z: form(*(likelihood(*each) for each in zip(z, labels, strict=True)), *reference)
    policy = np.array([[likelihood(*each) for each in zip(z, labels, strict=True)]])
    if name == "slic" and abs(1.5 - policy[0, 0] + policy[0, 1]) < 1e-3:
        return  # at the hinge there is no derivative
    with jax.enable_x64(True):
        loss, c = (np.asarray(x) for x in objective(jnp.array(policy), jnp.array(reference[None])))
    assert loss[0] == pytest.approx(value(z), rel=1e-12)
    step = 1e-5
    for r in range(2):
        expected = c[0, r] * (softmax_rows(z[r]) - np.eye(5)[labels[r]])
        for at in np.ndindex(z[r].shape):
            moved = [np.array(each) for each in z]
            moved[r][at] += step
            up = value(moved)
            moved[r][at] -= 2 * step
            assert (up - value(moved)) / (2 * step) == pytest.approx(expected[at], rel=1e-6, abs=2e-8)


def test_an_advantage_is_relative_to_its_group():
    reward = np.array([[1.0, 0, 0, 1, 0], [1, 1, 1, 1, 1]])
    policy = np.random.default_rng(0).normal(-5, 1, reward.shape)
    with jax.enable_x64(True):
        loss, c = (np.asarray(x) for x in Advantage()(jnp.array(policy), jnp.array(reward)))
        plain = np.asarray(Advantage(normalised=False)(jnp.array(policy), jnp.array(reward)).coefficient_BR)
    expected = (reward[0] - 0.4) / (np.std(reward[0], ddof=1) + 1e-4) / 5
    np.testing.assert_allclose(c, [expected, np.zeros(5)], atol=1e-12)
    np.testing.assert_allclose(plain[0], (reward[0] - 0.4) / 5, atol=1e-12)
    np.testing.assert_allclose(loss, -(c * policy).sum(axis=1), atol=1e-12)


# ---- In a model ------------------------------------------------------------------------------------------------------


def batch(rng, B=4, R=2, T=9):
    tokens = rng.integers(1, tiny.CONFIG.V, (B, R, T)).astype(np.int32)
    weights = np.zeros((B, R, T), np.float32)
    for b, r in np.ndindex(B, R):
        weights[b, r, 3 : 5 + (b + 2 * r) % 4] = 1
    return batch_of(tokens, weights, reference=rng.normal(-20, 3, (B, R)).astype(np.float32))


def one(arrays, r):
    """Tokens and weights of response r of each prompt."""
    return {key: arrays[key][r::2] for key in ("tokens", "weights")}


MODEL = build(tiny.CONFIG)


def mean_gradient(loss, arrays):
    """Of the mean over what the loss counts."""

    def mean(params):
        sums = loss(MODEL, params, arrays)
        return sums.total / sums.count

    return jax.jit(jax.value_and_grad(mean))(tiny.parameters())


def test_a_pairs_gradient_is_that_of_two_supervised_losses_by_its_coefficients():
    """The force of y⁺ and that of y⁻, each by next-token likelihood of that answer alone."""
    objective = SPPO(1.0)
    arrays = batch(np.random.default_rng(1), B=1)
    _, found = mean_gradient(Responses(objective), arrays)
    policy = np.array([[log_likelihood(MODEL, tiny.parameters(), *one(arrays, r).values())[0] for r in (0, 1)]])
    c = np.asarray(objective(policy, arrays["reference"]).coefficient_BR)[0]
    length = arrays["weights"].sum(axis=1)  # NextToken is a mean over tokens
    parts = [mean_gradient(NEXT_TOKEN, one(arrays, r))[1] for r in (0, 1)]
    expected = jax.tree.map(lambda a, b: c[0] * length[0] * a + c[1] * length[1] * b, *parts)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max())


def test_pairs_that_are_missing_do_not_count():
    arrays = batch(np.random.default_rng(2))
    whole, gradient = mean_gradient(Responses(DPO()), arrays)
    more = {key: np.concatenate([x, np.zeros_like(x[:2])]) for key, x in arrays.items()}
    padded, same = mean_gradient(Responses(DPO()), more)
    assert float(padded) == pytest.approx(float(whole), rel=1e-6)
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_gate_spares_what_is_rare_already():
    """Of three pairs with e⁻² a token as the gate: neither response is rarer, both are, the rejected one is."""
    policy, length = np.array([[-3.0, -7], [-9, -9], [-1, -9]]), np.array([[3.0, 4], [3, 4], [3, 4]])
    loss, reference = DPO(0.3), np.zeros((3, 2))
    gated = Responses(loss, gate=math.exp(-2))
    value = lambda policy: jnp.sum(gated._signed(policy, reference, length)[0])
    c = np.array(loss(policy, reference).coefficient_BR)
    np.testing.assert_allclose(-jax.grad(value)(policy), c * [[1, 1], [1, 0], [1, 0]], rtol=1e-5)
    assert gated._signed(policy, reference, length)[1]["gated"].tolist() == [0, 1, 1]


def test_metrics_are_rewards_and_how_often_the_chosen_one_is_higher():
    arrays = batch(np.random.default_rng(3))
    sums = jax.jit(lambda p: Responses(DPO(0.2))(MODEL, p, arrays))(tiny.parameters())
    policy = np.stack([log_likelihood(MODEL, tiny.parameters(), *one(arrays, r).values()) for r in (0, 1)], 1)
    reward = 0.2 * (policy - arrays["reference"])
    assert float(sums.metrics["reward_chosen"]) == pytest.approx(reward[:, 0].sum(), rel=1e-5)
    assert float(sums.metrics["margin"]) == pytest.approx((reward[:, 0] - reward[:, 1]).sum(), rel=1e-4)
    assert float(sums.metrics["reward_accuracy"]) == (reward[:, 0] > reward[:, 1]).sum()


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
@pytest.mark.parametrize("extreme", [0, 1])
def test_the_ends_of_the_ranges_of_its_settings_are_finite(name, extreme):
    """As a config allows them, with responses from certain to impossible; squares of gradients are finite, too."""
    ends = dict(beta=(1e-6, 1e6), label_smoothing=(0.0, 0.5), delta=(0.0, 1e6), weight=(0.0, 1e6), eta=(0.0, 1e6))
    for key, pair in ends.items():
        limit, about = keys.PREFERENCE[f"preference.{key}"]
        limit.check(key, pair[extreme], about)
        assert not limit.allows(pair[0] - 1e-5) and not limit.allows(1.1 * pair[1])
    asked = objectives.objective(name, {key: pair[extreme] for key, pair in ends.items()})
    policy_BR = jnp.array([[0.0, -5000.0], [-5000.0, 0.0], [-20.0, -20.0], [0.0, 0.0]])
    loss_B, c_BR = asked(policy_BR, jnp.full_like(policy_BR, -100.0))
    assert bool(jnp.isfinite(loss_B).all() & jnp.isfinite(jnp.square(1e3 * c_BR)).all())


def test_settings_that_an_objective_does_not_have_are_left_out():
    given = dict(beta=0.3, label_smoothing=0.1, reference_free=False, delta=2.0, weight=0.0, eta=0.5)
    assert objectives.objective("dpo", given) == DPO(0.3, 0.1)
    assert objectives.objective("slic", given) == SLiC(2.0, 0.0)
    assert objectives.objective("ascent", given) == Ascent()


def test_ches_is_of_the_hidden_states_that_predict_the_responses():
    """Against one response at a time, without padding, by the definition's sums."""
    arrays = batch(np.random.default_rng(4))
    params = tiny.parameters()
    log_BR, ches_B = jax.jit(functools.partial(pair_measures, MODEL))(params, arrays["tokens"], arrays["weights"])
    hidden = jax.jit(lambda params, tokens: MODEL.bind(params)(tokens)[0])
    likelihood = jax.jit(functools.partial(log_likelihood, MODEL))
    for b in range(2):
        sums = []
        for r in range(2):
            tokens, weights = (x[b] for x in one(arrays, r).values())
            places = np.flatnonzero(weights)
            alone = np.asarray(hidden(params, np.where(np.arange(9) <= places[-1], tokens, 0)[None])[0], np.float64)
            sums.append(sum(alone[place - 1] for place in places))
            expected = likelihood(params, tokens[None], weights[None])
            assert float(log_BR[b, r]) == pytest.approx(float(expected[0]), rel=1e-5)
        assert float(ches_B[b]) == pytest.approx(sums[0] @ sums[1] - sums[0] @ sums[0], rel=1e-4)
