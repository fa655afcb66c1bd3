"""One update: the loss and its gradient by hand, micro-batches against the whole batch, AdamW against NumPy."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from premem_jax.models.decoder import build
from premem_jax.training.losses import NEXT_TOKEN
from premem_jax.training.optimizer import learning_rate
from premem_jax.training.step import init_state, train_step
from tests import tiny
from tests.models import llama
from tests.training.tables import Table

T = tiny.CONTEXT
COUNTS = (13, 1, 2, 5)  # weighted tokens per row: a mean of means would weigh those of the second 13 times as much
MODEL, PARAMS = build(tiny.config()), tiny.parameters(tiny.config())
PLAIN = optax.identity()  # the update is minus the rate times the gradient


def batch_of(seed=0, rows=COUNTS):
    """Rows with a prompt (weight 0), a target (weight 1) and rubbish behind it (weight 0)."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((len(rows), T), np.float32)
    for b, count in enumerate(rows):
        first = int(rng.integers(1, T - count + 1))
        weights[b, first : first + count] = 1
    return {"tokens": rng.integers(0, tiny.config().V, (len(rows), T)).astype(np.int32), "weights": weights}


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def by_hand(logits_BTV, batch):
    """Loss, and its gradient at the logits: (softmax - onehot) * weight / sum of weights, one before the token."""
    tokens, weights = batch["tokens"], batch["weights"].astype(np.float64)
    logp, gradient, loss = log_softmax(logits_BTV.astype(np.float64)), np.zeros(logits_BTV.shape), 0.0
    for b, t in zip(*np.nonzero(weights), strict=True):
        loss -= weights[b, t] * logp[b, t - 1, tokens[b, t]]
        gradient[b, t - 1] += weights[b, t] * np.exp(logp[b, t - 1])
        gradient[b, t - 1, tokens[b, t]] -= weights[b, t]
    return loss / weights.sum(), gradient / weights.sum()


@pytest.mark.parametrize("fractional", [False, True])
def test_loss_and_gradient_of_the_predictions(fractional):
    """Only predictions of weighted tokens are pushed: the gradient is exactly zero at every other position."""
    batch, logits = batch_of(), np.random.default_rng(1).normal(size=(4, T, tiny.config().V)).astype(np.float32)
    if fractional:
        batch["weights"][:, 1:] += np.float32(0.3)
    state = init_state({"logits": jnp.asarray(logits)}, PLAIN)
    new, values = jax.jit(partial(train_step, Table(), NEXT_TOKEN, PLAIN, 1))(state, batch, 0.5)
    loss, gradient = by_hand(logits, batch)
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(values["grad_norm"], np.sqrt((gradient**2).sum()), rtol=1e-5)
    np.testing.assert_allclose(values["tokens"], batch["weights"].sum(), rtol=1e-6)
    moved = (np.asarray(new["params"]["logits"]) - logits) / -0.5
    np.testing.assert_allclose(moved, gradient, atol=1e-6)
    predicts = np.roll(batch["weights"], -1, axis=1) > 0
    assert (moved[~predicts] == 0).all() and (np.abs(moved[predicts]).max(axis=-1) > 0).all()
    assert int(new["step"]) == 1 and bool(new["good"])


def test_micro_batches_add_up_to_the_whole_batch():
    """1, 2 and 4 parts agree to rounding; a mean of the parts' means lies a thousand times further off.

    The loss is that of the NumPy Llama, over all weighted tokens.
    """
    params, batch = PARAMS, batch_of()
    steps = {n: jax.jit(partial(train_step, MODEL, NEXT_TOKEN, PLAIN, n)) for n in (1, 2, 4)}
    state = init_state(params, PLAIN)
    gradients, values = {}, {}
    for n, step in steps.items():
        new, values[n] = step(state, batch, 1.0)
        gradients[n] = flat(jax.tree.map(lambda p, q: p - np.asarray(q), params, new["params"]))
    error = max(np.abs(gradients[n] - gradients[1]).max() for n in (2, 4))
    assert error < 1e-5
    pairs = zip(batch["tokens"], batch["weights"], strict=True)
    total = sum((llama.nll(params, tiny.config(), tokens) * weights).sum() for tokens, weights in pairs)
    for n in (1, 2, 4):
        np.testing.assert_allclose(values[n]["loss"], total / sum(COUNTS), rtol=1e-5)
        np.testing.assert_allclose(values[n]["grad_norm"], values[1]["grad_norm"], rtol=1e-5)
        assert values[n]["tokens"] == sum(COUNTS)
    blank = np.zeros_like(batch["weights"])  # the same shape, so nothing compiles again
    rows = [batch | {"weights": np.where(np.arange(4)[:, None] == b, batch["weights"], blank)} for b in range(4)]
    alone = [flat(params) - flat(steps[1](state, row, 1.0)[0]["params"]) for row in rows]
    assert np.abs(np.mean(alone, axis=0) - gradients[1]).max() > 1000 * error
    weighted = np.average(alone, axis=0, weights=COUNTS)
    assert np.abs(weighted - gradients[1]).max() < 1e-5


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


class NumpyAdamW:
    """Adam (Kingma & Ba, algorithm 1) in float64 with clipping by the global norm and decoupled decay of matrices."""

    def __init__(self, params, *, b1, b2, eps, weight_decay, clip_norm):
        self.p = {name: np.asarray(x, np.float64) for name, x in params.items()}
        self.m, self.v = ({name: np.zeros_like(x) for name, x in self.p.items()} for _ in range(2))
        self.b1, self.b2, self.eps, self.decay, self.clip, self.t = b1, b2, eps, weight_decay, clip_norm, 0

    def update(self, gradient, rate):
        """Returns the norm of the gradient before clipping."""
        self.t += 1
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            g = g * min(1.0, self.clip / norm)
            self.m[name] = self.b1 * self.m[name] + (1 - self.b1) * g
            self.v[name] = self.b2 * self.v[name] + (1 - self.b2) * g**2
            m, v = self.m[name] / (1 - self.b1**self.t), self.v[name] / (1 - self.b2**self.t)
            decay = 0 if name.endswith("scale") else self.decay
            self.p[name] = self.p[name] - rate * (m / (np.sqrt(v) + self.eps) + decay * self.p[name])
        return norm


def named(tree):
    return {"/".join(k.key for k in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def trainer():
    return tiny.trainer()


@functools.cache
def first_state():
    """The state before the first update, on the host."""
    device = tiny.one_device().devices.item()
    return jax.tree.map(np.asarray, tiny.trainer().init_state(jax.device_put(PARAMS, device, may_alias=False)))


def start():
    return jax.tree.map(lambda x: jnp.array(x, copy=True), first_state())


def full_batch(seed):
    return batch_of(seed, rows=COUNTS * (tiny.BATCH // len(COUNTS)))


def test_ten_updates_equal_adamw_in_numpy(trainer):
    """Gradients are taken at NumPy's own parameters, so the two trajectories never touch."""
    schedule = dict(peak=0.02, warmup_steps=3, steps=12)

    @jax.jit
    def gradient(params, batch):
        decoder = MODEL.bind(params)
        logp = jax.nn.log_softmax(decoder.logits(decoder(batch["tokens"])[0]))[:, :-1]
        picked = jnp.sum(logp * jax.nn.one_hot(batch["tokens"][:, 1:], tiny.config().V), axis=-1)
        return -jnp.sum(picked * batch["weights"][:, 1:]) / jnp.sum(batch["weights"])

    gradient = jax.jit(jax.grad(gradient))
    treedef = jax.tree.structure(PARAMS)
    state, reference, norms = start(), NumpyAdamW(named(PARAMS), **tiny.OPTIMIZER), []
    for t in range(10):
        batch = full_batch(t)
        params = jax.tree.unflatten(treedef, [x.astype(np.float32) for x in reference.p.values()])
        exact = {name: x.astype(np.float64) for name, x in named(gradient(params, batch)).items()}
        norms.append(reference.update(exact, np.interp(t, [0, 3, 12], [0, 0.02, 0])))
        state, values = trainer.program(state, batch, np.float32(learning_rate(t, **schedule)))
        np.testing.assert_allclose(values["grad_norm"], norms[-1], rtol=1e-3)
    assert min(norms) < tiny.OPTIMIZER["clip_norm"] < max(norms)
    for name, x in named(state["params"]).items():
        moved = reference.p[name] - named(PARAMS)[name]
        assert np.abs(moved).max() > 0.02
        np.testing.assert_allclose(x, reference.p[name], atol=2e-4, err_msg=name)
    assert int(state["step"]) == 10


def test_the_state_is_updated_in_place(trainer):
    """The old arrays are gone, and the compiled program writes every byte of the state over the old one."""
    state = start()
    new, _ = trainer.program(state, full_batch(0), np.float32(0.1))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (new, full_batch(0), np.float32(0.1)))
    compiled = trainer.program.jitted.lower(*shapes).compile()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(new))
    assert state_bytes > 12 * tiny.config().parameters
    assert compiled.memory_analysis().alias_size_in_bytes >= state_bytes


def test_a_loss_that_is_not_finite_freezes_the_state(trainer):
    """The bad batch and every good one after it leave the state bit for bit as it was; only `good` changes."""
    state, _ = trainer.program(start(), full_batch(0), np.float32(0.01))
    before = jax.tree.map(np.asarray, state)
    assert before["good"]
    bad = full_batch(1)
    bad["weights"][2, 5] = np.inf
    for batch in (bad, full_batch(2), full_batch(3)):
        state, values = trainer.program(state, batch, np.float32(0.01))
        assert np.isfinite(values["loss"]) == (batch is not bad)
        assert not state["good"]
        jax.tree.map(np.testing.assert_array_equal, state | {"good": True}, before)


def test_a_gradient_that_is_not_finite_freezes_the_state_too():
    class Root(Table):  # the square root of 0 is finite, its slope is not
        def bind(self, params):
            return super().bind({"logits": jnp.sqrt(params["logits"])})

    state = init_state({"logits": jnp.zeros((4, T, tiny.config().V))}, PLAIN)
    new, values = jax.jit(partial(train_step, Root(), NEXT_TOKEN, PLAIN, 1))(state, batch_of(), 1.0)
    assert np.isfinite(values["loss"]) and not np.isfinite(values["grad_norm"])
    assert not new["good"] and int(new["step"]) == 0
    np.testing.assert_array_equal(new["params"]["logits"], 0)


def test_a_batch_without_weights_changes_nothing():
    state = init_state({"logits": jnp.ones((4, T, tiny.config().V))}, PLAIN)
    batch = batch_of() | {"weights": np.zeros((4, T), np.float32)}
    new, values = jax.jit(partial(train_step, Table(), NEXT_TOKEN, PLAIN, 1))(state, batch, 1.0)
    assert float(values["loss"]) == 0 and bool(new["good"])
    np.testing.assert_array_equal(new["params"]["logits"], 1)


def test_fresh_parameters_follow_the_seed(trainer):
    one, other = (np.asarray(trainer.random_parameters(seed)["embedding"]) for seed in (0, 1))
    np.testing.assert_array_equal(one, PARAMS["embedding"])
    assert not np.array_equal(one, other)
