"""The mesh and its rules: every array is placed, big ones are cut, and the cut changes no result."""

import dataclasses
import re
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from premem_jax import sharding
from premem_jax.data.pipeline import collate
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.models.architecture import Lora, preset
from premem_jax.models.decoder import build, init, unstack
from premem_jax.models.nll import token_nll
from premem_jax.running.programs import Clock
from premem_jax.sampling.sampler import sample, to_decode
from premem_jax.training.checkpoints import Checkpoints
from premem_jax.training.optimizer import adamw
from premem_jax.training.step import init_state
from premem_jax.training.trainer import Trainer
from tests import tiny

# Sizes of data, fsdp and tensor, and how many devices share the weights while sampling.
SLOW = [((8, 1, 1), 0), ((1, 2, 4), 1)]
MESHES = [((1, 8, 1), 2), ((2, 2, 2), 0), *(pytest.param(*mesh, marks=pytest.mark.slow) for mesh in SLOW)]


def mesh_of(shape, devices=None):
    return sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)), devices)


def results(mesh, decode_tensor=0):
    """One update from given parameters, and both evaluators, on `mesh`; everything on the host."""
    model, data, clock = build(tiny.config(), mesh=mesh), tiny.data(), Clock()
    alone = mesh == tiny.one_device()
    trainer = tiny.trainer() if alone else Trainer(model, mesh, clock, tiny.OPTIMIZER, micro_batches=2)
    layout = sharding.shardings(mesh, trainer.abstract_state)
    params = jax.device_put(tiny.trained(), layout["params"])
    batch = collate(data, range(13), batch=tiny.BATCH, length=tiny.CONTEXT)
    state = trainer.init_state(jax.tree.map(lambda x: x + 0, params))
    arrays = sharding.put_batch(mesh, {key: batch[key] for key in ("tokens", "weights")})
    state, values = trainer.program(state, arrays, np.float32(0.01))
    jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding} is not {s}"), state, layout)

    run = tiny.run(mesh, model=model, clock=clock, buckets=(8, tiny.CONTEXT), decode_tensor=decode_tensor)
    collected = lambda parts: Collected(len(tiny.data())).all(parts).columns
    likelihood = collected(Likelihood(tiny.split(), run, batch=16).measure(params, 3))
    options = dict(samples=4, max_new_tokens=9, first_round=5, temperature=1.0, top_p=1.0, keep_texts=0)
    decode = jax.device_put(tiny.trained(), sharding.shardings(run.at("decode").mesh, params))
    verdicts = collected(Accuracy(tiny.split(), run, batch=16, **options).measure(decode, 3))
    return jax.tree.map(np.asarray, (state, values, likelihood, verdicts))


@pytest.fixture(scope="module")
def alone():
    return results(tiny.one_device())


@pytest.mark.parametrize("shape, decode_tensor", MESHES)
def test_every_mesh_gives_the_results_of_one_device(alone, shape, decode_tensor):
    state, values, likelihood, verdicts = results(mesh_of(shape), decode_tensor)
    state1, values1, likelihood1, verdicts1 = alone
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, state1)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state1["params"], tiny.trained())
    assert min(jax.tree.leaves(moved)) > 1e-3
    for name, value in values.items():
        np.testing.assert_allclose(value, values1[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(likelihood["target_nll"], likelihood1["target_nll"], atol=1e-5)
    assert likelihood1["target_nll"].min() > 0
    np.testing.assert_array_equal(likelihood["target_tokens"], likelihood1["target_tokens"])
    for name, counts in verdicts.items():
        np.testing.assert_array_equal(counts, verdicts1[name], err_msg=name)
    wrong = verdicts1["samples"] - verdicts1["correct"] - verdicts1["unparsed"]
    assert verdicts1["correct"].any() and wrong.any()


FAMILIES = dict(
    qwen2=dict(biases=("q", "k", "v")),
    qwen3=dict(head_norms=True),
    mistral=dict(windows=(5,)),
    all=dict(biases=("q", "k", "v"), head_norms=True, windows=(5, None)),
)
slow = lambda name: pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("family", [slow("qwen2"), slow("qwen3"), slow("mistral"), "all"])
def test_what_families_have_beside_llama_is_cut_without_effect(family):
    """Two updates, and greedy responses after them, on eight devices and on one."""
    config = dataclasses.replace(tiny.config(), **FAMILIES[family])
    prompts, lengths = np.arange(8 * 7).reshape(8, 7) % config.V, np.array([7, 3, 6, 2, 1, 7, 5, 4])
    greedy = dict(samples=1, max_new_tokens=6, temperature=0.0, top_p=1.0, eos_ids=(-1,))

    def found(mesh):
        model = build(config, mesh=mesh)
        trainer = Trainer(model, mesh, Clock(), tiny.OPTIMIZER, micro_batches=1)
        layout = sharding.shardings(mesh, trainer.abstract_state)
        state = trainer.init_state(jax.device_put(tiny.parameters(config), layout["params"]))
        batch = collate(tiny.data(), range(13), batch=tiny.BATCH, length=tiny.CONTEXT)
        arrays = sharding.put_batch(mesh, {key: batch[key] for key in ("tokens", "weights")})
        for _ in range(2):
            state, values = trainer.program(state, arrays, np.float32(0.003))
        decode = sharding.decode_mesh(mesh)
        params = to_decode("float32", jax.device_put(state["params"], sharding.shardings(decode, state["params"])))
        drawn = jax.jit(partial(sample, model.on(mesh=decode), **greedy))(
            params, prompts, lengths, np.arange(8), jax.random.key(0)
        )
        return jax.tree.map(np.asarray, (state["params"], values["loss"], drawn.tokens))

    (params, loss, tokens), (params1, loss1, tokens1) = found(mesh_of((2, 2, 2))), found(tiny.one_device())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, params1)
    np.testing.assert_allclose(loss, loss1, rtol=1e-5)
    np.testing.assert_array_equal(tokens, tokens1)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params1, dict(tiny.parameters(config)))
    assert min(jax.tree.leaves(moved)) > 1e-3 and len(np.unique(tokens1)) > 5


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    key = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))))
    return [("/".join(map(key, path)), leaf) for path, leaf in leaves]


def equations(jaxpr):
    """Of a program and all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            yield from equations(inner) if hasattr(inner, "eqns") else ()


def full_state(config):
    """The train state of a full model, as shapes."""
    return jax.eval_shape(lambda: init_state(init(config, jax.random.key(0)), adamw(**tiny.OPTIMIZER)))


@pytest.fixture(scope="module", params=["llama3_8b", "gemma2_9b"])
def full(request):
    """The train state of a full model, and its number of parameters."""
    config = preset(request.param)
    return full_state(config), config.parameters


def test_no_rule_is_of_no_use():
    lora = Lora(rank=4, alpha=8.0, targets=("q", "down"))
    states = [full_state(preset(name, lora=lora)) for name in ("gemma2_9b", "qwen2_5_7b")]
    arrays = [named for state in states for named in paths(state)]
    for name, leaf in arrays:
        [axes] = [axes for rule, axes in sharding.RULES if re.search(rule, name)]
        assert len(axes) in (0, leaf.ndim)
    names = [name for name, _ in arrays]
    assert not [rule for rule, _ in sharding.RULES if not any(re.search(rule, name) for name in names)]


def test_every_array_of_the_state_has_a_rule(full):
    """Parameters, both moments and the scalars; the moments lie as their parameters do."""
    full, _ = full
    layout = dict(paths(sharding.shardings(mesh_of((1, 8, 1)), full)))
    names = [name for name, _ in paths(full)]
    for name, leaf in paths(full):
        matching = [rule for rule, _ in sharding.RULES if re.search(rule, name)]
        assert len(matching) == 1, name
        axes = dict(sharding.RULES)[matching[0]]
        assert len(axes) in (0, leaf.ndim)
    for name in (name for name in names if name.startswith("params/")):
        moments = [layout[other] for other in names if other.endswith(name.removeprefix("params")) and other != name]
        assert len(moments) == 2 and all(moment == layout[name] for moment in moments), name


def test_no_large_array_is_replicated(full):
    """Of the state, 12 bytes a parameter, every device of eight holds an eighth and a little."""
    full, parameters = full
    assert 12 * parameters <= sum(x.size * x.dtype.itemsize for _, x in paths(full))
    for shape in ((1, 8, 1), (1, 2, 4)):
        layout = dict(paths(sharding.shardings(mesh_of(shape), full)))
        held = 0
        for name, leaf in paths(full):
            part = int(np.prod(layout[name].shard_shape(leaf.shape))) * leaf.dtype.itemsize
            held += part
            size = leaf.size * leaf.dtype.itemsize
            assert size <= 2**24 or part == size / 8, name
        assert held < 1.001 * 12 * parameters / 8


@pytest.mark.parametrize("model", ["llama3_8b", "gemma2_9b"])
def test_weights_meet_activations_whole_but_for_tensor(model):
    """All matrices of each layer of a period, in the compute dtype, and a chunk of the output head."""
    config = preset(model)
    params = jax.eval_shape(partial(init, config), jax.random.key(0))

    def met(mesh):
        decoder = build(config, dtype="bfloat16", vocab_chunks=8, mesh=mesh)
        program = jax.make_jaxpr(partial(token_nll, decoder))(params, np.zeros((8, 128), np.int32))
        found = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "sharding_constraint"]
        assert all(eqn.outvars[0].aval.dtype == "bfloat16" for eqn in found if eqn.outvars[0].aval.ndim > 1)
        return Counter((eqn.outvars[0].aval.shape, tuple(eqn.params["sharding"].spec)) for eqn in found)

    period, cut = len(config.windows), "tensor"
    expected = Counter({((config.D, config.V // 8), (None, cut)): 1})
    for name, leaf in paths(params["layers"]):
        last = name.rpartition("/")[2]
        spec = dict(q=(None, cut, None), o=(cut, None, None), gate=(None, cut), down=(cut, None), scale=())
        expected[leaf.shape[1:], (spec | dict(k=spec["q"], v=spec["q"], up=spec["gate"]))[last]] += period
    assert met(mesh_of((1, 4, 2))) == expected
    assert not met(mesh_of((4, 1, 2))) and not met(None)


def test_the_decode_layout_cuts_along_tensor_alone(full):
    full, _ = full
    for tensor, parts in (0, 4), (8, 8), (2, 2):
        mesh = sharding.decode_mesh(mesh_of((1, 2, 4)), tensor)
        unstacked = jax.eval_shape(unstack, full["params"])
        layout, stacked = (dict(paths(sharding.shardings(mesh, tree))) for tree in (unstacked, full["params"]))
        for name, leaf in paths(unstacked):
            cut = 1 if name.endswith("scale") else parts
            assert np.prod(layout[name].shard_shape(leaf.shape)) == leaf.size / cut
            whole = stacked[re.sub(r"^layers/\d+", "layers", name)].spec
            assert tuple(layout[name].spec) == tuple(whole)[-leaf.ndim :]
    with pytest.raises(UserError, match=r"mesh\.decode_tensor=3 does not divide 8 device"):
        sharding.decode_mesh(mesh_of((1, 2, 4)), 3)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the arrangement of devices looks at."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


@pytest.mark.parametrize("sizes", [[2, 4, 1], [4, 1, 2], [2, 2, 2]])
def test_slices_lie_along_data(sizes):
    """Two slices whose devices come mixed: each row of `data` is in one slice, and none is lost."""
    devices = [Device(i, slice_index=i % 2) for i in range(8)]
    arranged = sharding._arranged(devices, sizes)
    assert sorted(device.id for device in arranged.flat) == list(range(8))
    half = sizes[0] // 2
    assert {d.slice_index for d in arranged[:half].flat} == {0} and {d.slice_index for d in arranged[half:].flat} == {1}
    with pytest.raises(UserError, match="data=1 must be a multiple of the 2 slices"):
        sharding._arranged(devices, [1, 8, 1])


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = mesh_of((1, 2, 4))
    assert sharding.spec("params/head", (32, 40), mesh) == P("fsdp", "tensor")
    assert sharding.spec("params/head", (32, 42), mesh) == P("fsdp", None)
    assert sharding.spec("params/head", (33, 40), mesh) == P(None, "tensor")
    assert sharding.spec("layers/attention/k", (2, 32, 2, 8), mesh) == P(None, "fsdp", None, None)


def test_an_array_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="no sharding rule matches 'layers/attention/gate_bias'"):
        sharding.spec("layers/attention/gate_bias", (2, 32), mesh_of((1, 8, 1)))


@pytest.mark.parametrize("asked", [(1, -1, 1), (-1, 2, 2), (2, 2, -1), (8, 1, 1)])
def test_one_axis_takes_what_is_left(asked):
    mesh = mesh_of(asked)
    sizes = tuple(mesh.shape[name] for name in sharding.AXES)
    assert mesh.axis_names == sharding.AXES and np.prod(sizes) == 8
    assert all(size == want for size, want in zip(sizes, asked, strict=True) if want != -1)
    assert sharding.parts(mesh) == sizes[0] * sizes[1]


@pytest.mark.parametrize("asked", [(3, 1, 1), (2, 2, 1), (1, -1, 3), (16, 1, 1), (16, -1, 1)])
def test_sizes_must_multiply_to_the_devices(asked):
    named = re.escape(str(dict(zip(sharding.AXES, asked, strict=True))))
    with pytest.raises(UserError, match=f"mesh {named} does not divide 8 device"):
        mesh_of(asked)


@pytest.mark.parametrize("asked", [(0, 8, 1), (-1, -1, 1), (-2, 4, 1)])
def test_sizes_must_be_positive(asked):
    with pytest.raises(UserError, match="at most one may be -1"):
        mesh_of(asked)


def test_a_batch_lies_over_data_and_fsdp():
    mesh = mesh_of((2, 2, 2))
    put = partial(sharding.put_batch, mesh)
    x = put(np.arange(16).reshape(8, 2))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(x, np.arange(16).reshape(8, 2))


def test_a_checkpoint_restores_on_another_mesh(tmp_path):
    """Every bit of the train state, from three layouts into each other; the arrays lie as the new mesh asks."""
    states = {}
    for number, shape in enumerate([(1, 8, 1), (2, 2, 2), (1, 2, 4)]):
        mesh = mesh_of(shape)
        trainer = Trainer(build(tiny.config()), mesh, Clock(), tiny.OPTIMIZER, micro_batches=1)
        checkpoints = Checkpoints(tmp_path, keep=9)
        state = checkpoints.restore(mesh, trainer.abstract_state)
        layout = sharding.shardings(mesh, trainer.abstract_state)
        if number:
            jax.tree.map(np.testing.assert_array_equal, state, states[number - 1])
            jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding} is not {s}"), state, layout)
        state = trainer.init_state(trainer.random_parameters(number))  # each mesh leaves other numbers to the next
        states[number] = jax.tree.map(np.asarray, state)
        checkpoints.save(number, state)
        checkpoints.wait()
        checkpoints.close()
