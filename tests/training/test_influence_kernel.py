"""A, K and G in float64 on a small causal network: what must hold exactly, and what to second order.

The network is not the program's own, which computes its softmax in fp32; the functions under test take any.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax.training.influence import (
    first_order,
    kernel,
    kernel_product,
    norm_of_a,
    norm_of_k,
    residual,
    through_softmax,
)

V, D, T = 7, 5, 6


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def parameters():
    rng = np.random.default_rng(0)
    shapes = dict(embedding=(V, D), place=(T, D), q=(D, D), k=(D, D), v=(D, D), up=(D, 9), down=(9, D), head=(D, V))
    return {name: rng.normal(0, 0.6, shape) for name, shape in shapes.items()}


def logits(params, tokens):
    """(T − 1, V), each of the next token: one layer of causal attention and one of tanh."""
    x = params["embedding"][tokens] + params["place"]
    scores = (x @ params["q"]) @ (x @ params["k"]).T / D**0.5
    x = x + jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool), scores, -jnp.inf)) @ x @ params["v"]
    return ((x + jnp.tanh(x @ params["up"]) @ params["down"]) @ params["head"])[:-1]


def of(tokens):
    return lambda params: logits(params, tokens)


def text(seed):
    """Six tokens, of which the last three are the response."""
    return np.random.default_rng(seed).integers(V, size=T)


RESPONSE = np.array([0, 0, 1, 1, 1.0])  # the places of `logits` that predict it
U, O = text(1), text(2)  # noqa: E741 - as the paper calls what is trained on and what is observed


def loss(params, tokens):
    """Supervised finetuning: minus the sum over the response."""
    return -jnp.sum(RESPONSE * jax.nn.log_softmax(logits(params, tokens))[jnp.arange(T - 1), tokens[1:]])


@functools.cache
def exact():
    """K(o, u)."""
    return np.asarray(kernel(of(O), of(U), parameters()))


def g(tokens):
    """G of supervised finetuning on `tokens`, (T − 1, V), zero at the prompt."""
    return RESPONSE[:, None] * residual(logits(parameters(), tokens), tokens[1:])


def near(a, b, tolerance=1e-10):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


# ---- G, A and K alone ------------------------------------------------------------------------------------------------


def test_g_is_the_gradient_at_the_logits():
    at_logits = lambda z: -jnp.sum(RESPONSE * jax.nn.log_softmax(z)[jnp.arange(T - 1), U[1:]])
    near(g(U), jax.grad(at_logits)(logits(parameters(), U)))
    near(g(U).sum(axis=1), np.zeros(T - 1))
    assert not g(U)[:2].any()


def test_a_is_a_projection_of_known_norm():
    z = logits(parameters(), O)
    a = jax.vmap(lambda e: through_softmax(z, jnp.broadcast_to(e, z.shape)), out_axes=-1)(jnp.eye(V))
    near(a, np.eye(V) - jax.nn.softmax(z)[:, None, :])
    near(a.sum(axis=2), np.zeros((T - 1, V)))
    near(jnp.einsum("ti,tij->tj", jax.nn.softmax(z), a), np.zeros((T - 1, V)))
    near(a @ a, a)
    near(norm_of_a(z), np.linalg.norm(a, axis=(1, 2)))
    shift = np.random.default_rng(3).normal(size=(T - 1, 1))
    change = np.random.default_rng(4).normal(size=z.shape)
    near(through_softmax(z + shift, change + 2 * shift), through_softmax(z, change))
    near(norm_of_a(z + shift), norm_of_a(z))


def test_k_is_the_product_of_jacobians():
    flat = lambda tree: jnp.concatenate([x.reshape(T - 1, V, -1) for x in tree.values()], axis=-1)
    jacobian_o, jacobian_u = (flat(jax.jacobian(of(x))(parameters())) for x in (O, U))
    k = exact()
    near(k, jnp.einsum("mvd,lwd->mvlw", jacobian_o, jacobian_u))
    near(k, jnp.transpose(kernel(of(U), of(O), parameters()), (2, 3, 0, 1)))
    near(kernel_product(of(O), of(U), parameters(), g(U)), jnp.einsum("mvlw,lw->mv", k, g(U)))
    own = kernel(of(U), of(U), parameters()).reshape((T - 1) * V, -1)
    assert np.linalg.eigvalsh(own).min() > -1e-10 * np.linalg.norm(own)
    estimate = norm_of_k(of(O), of(U), parameters(), jax.random.key(0), draws=400)
    assert float(estimate) == pytest.approx(float(np.linalg.norm(k)), rel=0.1)


def test_mass_is_conserved_to_first_order_and_lost_by_a_divergence():
    direction = jax.tree.map(jnp.negative, jax.grad(loss)(parameters(), U))
    change = first_order(of(O), parameters(), {"": direction})[""]
    before, after = (
        jax.nn.log_softmax(logits(p, O)) for p in (parameters(), jax.tree.map(jnp.add, parameters(), direction))
    )
    near(jnp.sum(jnp.exp(before) * through_softmax(before, change), axis=1), np.zeros(T - 1))
    divergence = np.sum(np.exp(before) * (before - after), axis=1)
    near(jnp.sum(jnp.exp(before) * (after - before), axis=1), -divergence)
    assert (divergence > 0).all()


def test_a_step_on_a_response_makes_it_likelier():
    change = -kernel_product(of(U), of(U), parameters(), g(U))
    assert float(jnp.sum(g(U) * change)) < 0  # the loss falls by Gᵀ K G


def test_what_comes_later_has_no_influence():
    """A later token of the observed text leaves the prediction as it is; it depends on every earlier one."""
    direction = jax.grad(loss)(parameters(), U)
    predicted = lambda tokens: through_softmax(
        logits(parameters(), tokens), first_order(of(tokens), parameters(), {"": direction})[""]
    )
    other = np.where(np.arange(T) == 3, (O + 1) % V, O)
    near(predicted(other)[:3], predicted(O)[:3])
    assert (np.abs(predicted(other)[3:] - predicted(O)[3:]).max(axis=1) > 1e-3).all()


def test_a_batch_moves_as_the_mean_of_its_examples():
    batch = [text(seed) for seed in range(5, 9)]
    whole = jax.grad(lambda p: sum(loss(p, x) for x in batch) / 4)(parameters())
    alone = {str(i): jax.grad(loss)(parameters(), x) for i, x in enumerate(batch)}
    change = first_order(of(O), parameters(), alone | {"batch": whole})
    near(change.pop("batch"), sum(change.values()) / 4)


# ---- −η A K G against what a step does -------------------------------------------------------------------------------


def slope(predicted):
    """Of log error against log η over three decades, of one plain gradient step on U as seen at O."""
    errors, rates = [], np.geomspace(1e-3, 1e-6, 7)
    gradient, before = jax.grad(loss)(parameters(), U), jax.nn.log_softmax(logits(parameters(), O))
    for rate in rates:
        after = jax.tree.map(lambda p, g, rate=rate: p - rate * g, parameters(), gradient)
        errors.append(np.abs(jax.nn.log_softmax(logits(after, O)) - before - rate * predicted).max())
    return np.polyfit(np.log(rates), np.log(errors), 1)[0]


def prediction(*, a=True, k=lambda k: k, times=1.0):
    """−A K G of the whole vocabulary at every place, from the kernel itself."""
    change = -times * jnp.einsum("mvlw,lw->mv", k(exact()), g(U))
    return through_softmax(logits(parameters(), O), change) if a else change


def test_the_decomposition_errs_by_the_square_of_the_rate():
    assert slope(prediction()) == pytest.approx(2, abs=0.05)
    direction = jax.tree.map(jnp.negative, jax.grad(loss)(parameters(), U))
    forward = through_softmax(logits(parameters(), O), first_order(of(O), parameters(), {"": direction})[""])
    near(prediction(), forward)


WRONG = {
    "no A": dict(a=False),
    "K transposed": dict(k=lambda k: jnp.transpose(k, (2, 3, 0, 1))),
    "twice the rate": dict(times=2.0),
    "one token's share of K": dict(k=lambda k: k * np.eye(T - 1)[:, None, :, None]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_decomposition_errs_by_the_rate_itself(name):
    assert slope(prediction(**WRONG[name])) == pytest.approx(1, abs=0.05)
