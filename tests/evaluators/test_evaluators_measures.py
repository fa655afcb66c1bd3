"""Gradient variance, distance and confidence against slow loops, example by example and parameter by parameter."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.analysis.trace import read_trace
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Collected
from premem_jax.evaluators.confidence import Confidence
from premem_jax.evaluators.distance import Distance
from premem_jax.evaluators.gradient_variance import GradientVariance
from premem_jax.evaluators.suite import Suite
from premem_jax.models.decoder import build
from premem_jax.models.nll import token_nll
from tests import tiny
from tests.models import llama

NEW_TOKENS = 5  # some greedy responses end before, some do not


def on(mesh, params):
    return jax.device_put(params, sharding.shardings(mesh, params))


def measured(evaluator, mesh=None):
    parts = list(evaluator.measure(on(mesh or tiny.one_device(), tiny.trained()), 3))
    assert sum(len(part.rows) for part in parts) == (0 if isinstance(evaluator, Distance) else evaluator.examples)
    found = Collected(len(tiny.data())).all(parts)
    [value] = found.measures.values()
    assert found.columns == {} and found.texts == []
    return value


def confident(run):
    evaluator = Confidence(tiny.split(), run, batch=8, max_new_tokens=NEW_TOKENS)
    parts = evaluator.measure(on(run.at("decode").mesh, tiny.trained()), 3)
    return Collected(len(tiny.data())).all(parts).columns["log_confidence"]


@pytest.fixture(scope="module")
def gradients():
    """(E, parameters) gradient of the summed NLL of each example, and (E,) its target tokens."""
    data, model, rows = tiny.data(), build(tiny.config()), []
    gradient = jax.jit(jax.grad(lambda p, tokens, where: jnp.sum(token_nll(model, p, tokens)[0] * where)))
    for prompt, target in zip(data.prompts, data.targets, strict=True):
        end = len(prompt) + len(target)
        tokens = np.pad([*prompt, *target], (0, tiny.CONTEXT - end))[None]
        where = np.float32((np.arange(tiny.CONTEXT) >= len(prompt)) & (np.arange(tiny.CONTEXT) < end))
        leaves = jax.tree.leaves(gradient(tiny.trained(), tokens, where))
        rows.append(np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64))
    return np.array(rows), np.array([len(target) for target in data.targets])


@pytest.mark.parametrize(("batch", "batches", "micro_batches"), [(1, 13, 1), (4, 5, 2)])
def test_gradient_variance_is_that_of_all_gradients_side_by_side(gradients, batch, batches, micro_batches):
    """Over examples; and over the 3 batches of 4 that 13 examples give, each with the mean over its tokens."""
    gradient_EP, tokens_E = gradients
    count = 13 // batch
    cut = lambda x: x[: count * batch].reshape(count, batch, -1).sum(axis=1)
    mean_CP = cut(gradient_EP) / cut(tokens_E)
    expected = np.mean(np.var(mean_CP, axis=0, ddof=1))
    got = measured(
        GradientVariance(tiny.split(), tiny.run(), batch=batch, batches=batches, micro_batches=micro_batches)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_gradient_variance_of_equal_gradients_is_nothing_beside_their_size(gradients):
    """The deviations are taken before they are squared: large gradients that agree leave no remainder."""
    data = tiny.data()
    same = type(data)(data.examples[:1] * 4, data.prompts[:1] * 4, data.targets[:1] * 4)
    got = measured(GradientVariance(tiny.split(data=same), tiny.run(), batch=1, batches=4, micro_batches=1))
    assert got < 1e-10 * np.mean(np.square(gradients[0][0]))


def test_gradient_variance_needs_two_batches():
    with pytest.raises(UserError, match="13 examples, so lower its batch=8"):
        GradientVariance(tiny.split(), tiny.run(), batch=8, batches=5, micro_batches=1)


def test_distance_is_the_sum_over_all_inner_weights():
    moved = jax.tree.map(lambda x: x + np.float32(0.5), tiny.trained())
    moved["embedding"], moved["head"] = moved["embedding"] + 100, moved["head"] + 100
    base = jax.tree.map(lambda x: x * np.float32(0.9), moved)
    expected = 0.0
    for name, tree in tiny.trained().items():
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(base[name]), strict=True):
            expected += 0 if name in ("embedding", "head") else np.sum((a.astype(np.float64) - b) ** 2)
    got = measured(Distance(tiny.split(), tiny.run(base=lambda: on(tiny.one_device(), base))))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert measured(Distance(tiny.split(), tiny.run(base=lambda: on(tiny.one_device(), tiny.trained())))) == 0


@pytest.mark.parametrize("also", [(), (7,)])
def test_confidence_is_that_of_the_numpy_llama_taking_the_likeliest_token(also):
    """In float64, without a cache: token after token until a stop marker, which counts, or the limit."""
    tokenizer, data, ends = copy.copy(tiny.tokenizer()), tiny.data(), set()
    tokenizer.also_stop = also
    stops = (tokenizer.eos_id, *also)
    got = confident(tiny.run(tokenizer=tokenizer))
    for e, prompt in enumerate(data.prompts):
        text, total = list(prompt), 0.0
        for _ in range(NEW_TOKENS):
            nll_V = [llama.nll(tiny.trained(), tiny.config(), [*text, v])[-1] for v in range(tiny.config().V)]
            text.append(int(np.argmin(nll_V)))
            total -= min(nll_V)
            if text[-1] in stops:
                break
        ends.add(text[-1] in stops)
        np.testing.assert_allclose(got[e], total, atol=2e-4)
    assert ends == {True, False}


def test_they_lie_in_the_trace_at_the_steps_where_they_are_due(tmp_path):
    base = lambda: on(tiny.one_device(), jax.tree.map(lambda x: x * np.float32(0.9), tiny.trained()))
    due = dict(split="train", epochs=(1,))
    evals = dict(
        nll=dict(type="likelihood", split="train", epochs=(1, 2), batch=13),
        noise=dict(type="gradient_variance", batch=4, batches=5, micro_batches=2, **due),
        way=dict(type="distance", **due),
        sure=dict(type="confidence", batch=5, max_new_tokens=NEW_TOKENS, **due),
    )
    suite = Suite(evals, {"train": tiny.split()}, tiny.run(base=base), steps_per_epoch=10, steps=30, workdir=tmp_path)
    for step in (10, 20, 30):
        suite.run(step, tiny.alone(on(tiny.one_device(), tiny.trained())))
    read = read_trace(tmp_path / "trace")
    assert sorted(read.measures) == ["distance_from_initialization", "gradient_variance"]
    for values in (*read.measures.values(), *read.split("train").log_confidence.T):
        assert np.isnan(values[1]) and values[0] == values[2] != 0


def test_every_mesh_measures_the_same():
    """What is computed where the weights are trained."""
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    base = jax.tree.map(lambda x: x * np.float32(0.9), tiny.trained())
    for make in (
        lambda mesh: GradientVariance(tiny.split(), tiny.run(mesh), batch=4, batches=3, micro_batches=1),
        lambda mesh: Distance(tiny.split(), tiny.run(mesh, base=lambda: on(mesh, base))),
    ):
        np.testing.assert_allclose(measured(make(mesh), mesh), measured(make(tiny.one_device())), rtol=1e-4)


@pytest.mark.slow
def test_every_mesh_is_as_confident():
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    alone, cut = confident(tiny.run()), confident(tiny.run(mesh))
    np.testing.assert_allclose(cut, alone, atol=1e-4)
