"""Training of adapters: what a phase keeps, on every mesh, in a stack and in a whole finetune."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from premem_jax import sharding
from premem_jax.analysis.trace import read_trace
from premem_jax.config import evaluator
from premem_jax.data.reader import stacked, train_batches
from premem_jax.errors import Stopped, UserError
from premem_jax.experiments import finetune
from premem_jax.models import adapters
from premem_jax.models.architecture import Lora
from premem_jax.models.decoder import build, init
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running.programs import Clock
from premem_jax.sampling.sampler import sample, to_decode
from premem_jax.training.measures import squared_distance
from premem_jax.training.phase import Phase
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer
from tests import tiny
from tests.configs.tiny import get_config

LORA, STEPS = Lora(rank=2, alpha=6.0, targets=("q", "o", "up")), 5


def trainer(mesh=None, dtype="float32", members=0) -> Trainer:
    mesh = mesh or tiny.one_device()
    model = build(dataclasses.replace(tiny.config(), lora=LORA), mesh=mesh, dtype=dtype)
    return Trainer(model, mesh, Clock(), tiny.OPTIMIZER, micro_batches=2, members=members)


def start(of: Trainer) -> dict:
    params = jax.jit(init, static_argnums=0)(of.model.config, jax.random.key(1))
    return jax.device_put(params, sharding.shardings(of.mesh, params))


def run(folder, of: Trainer, stop_at=None, **options) -> dict:
    source = partial(train_batches, tiny.data(), batch=tiny.BATCH, seed=0, buckets=(tiny.CONTEXT,))

    def batches(start, stop):
        for t, batch in enumerate(source(start, stop), start):
            if t == stop_at:
                raise Stopped
            yield batch

    settings = dict(save_every=2, keep=2, log_every=1) | options
    return Phase("adapters", folder, of, STEPS, batches, lambda step: 1e-2, **settings).run(partial(start, of))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return jax.tree.map(np.asarray, run(tmp_path_factory.mktemp("whole"), trainer()))


def test_only_adapters_are_trained(whole):
    state, begun = whole, start(trainer())
    assert sum(x.size for x in jax.tree.leaves(state["params"])) == trainer().model.config.trained
    first, frozen = adapters.split(begun)
    jax.tree.map(np.testing.assert_array_equal, state["frozen"], frozen)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state["params"], first)
    assert min(jax.tree.leaves(moved)) > 1e-3
    assert all(not np.any(b) for path, b in jax.tree_util.tree_leaves_with_path(first) if path[-1].key.endswith("_B"))


def test_adapters_compute_what_merged_weights_compute(whole):
    tokens = np.arange(24).reshape(2, 12) % 20
    model = trainer().model
    plain = model.on(config=dataclasses.replace(model.config, lora=None))
    hidden = lambda model, params: jax.jit(lambda p: model.bind(p)(tokens)[0])(params)
    expected = hidden(plain, adapters.merged(LORA, weights(whole)))
    np.testing.assert_allclose(hidden(model, weights(whole)), expected, rtol=0, atol=1e-5)
    assert np.abs(hidden(plain, whole["frozen"]) - expected).max() > 1e-2
    options = dict(samples=2, max_new_tokens=6, temperature=0.0, top_p=1.0, eos_ids=(-1,))
    drawn = lambda model, params: jax.jit(partial(sample, model, **options))(
        to_decode("float32", params), tokens, np.array([12, 5]), np.arange(2), jax.random.key(0)
    )
    expected = drawn(plain, adapters.merged(LORA, weights(whole)))
    np.testing.assert_array_equal(drawn(model, weights(whole)).tokens, expected.tokens)


def test_a_resumed_phase_ends_in_the_same_bits_and_keeps_adapters_alone(whole, tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, trainer(), stop_at=3)
    asked = []

    def look_back(kept, weights_at):
        asked.extend(kept)
        found = weights_at(kept[-1])[""]()
        jax.tree.map(np.testing.assert_array_equal, adapters.split(found)[1], whole["frozen"])

    state = run(tmp_path, trainer(), look_back=look_back)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert asked == [2, 3]
    kept = b"".join(file.read_bytes() for file in (tmp_path / "checkpoints" / "5").rglob("*") if file.is_file())
    assert b"q_A" in kept and b"frozen" not in kept and b"embedding" not in kept


@pytest.mark.parametrize("shape", [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_every_mesh_gives_the_results_of_one_device(whole, tmp_path, shape):
    state = run(tmp_path, trainer(sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, whole)


@pytest.mark.slow
def test_members_of_a_stack_end_as_if_they_had_been_trained_alone(whole, tmp_path):
    of, rates = trainer(members=2), np.array([1e-2, 0.0])
    source = partial(train_batches, tiny.data(), batch=tiny.BATCH, seed=0, buckets=(tiny.CONTEXT,))
    options = dict(save_every=2, keep=2, log_every=1, members=("a", "b"))
    batches = lambda first, last: stacked([source, source], first, last)
    phase = Phase("stack", tmp_path, of, STEPS, batches, lambda step: rates, **options)
    state = phase.run(lambda: of.stack([start(of), start(of)]))
    for m, expected in enumerate([weights(whole), start(of)]):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), weights(state, m), expected)


def test_frozen_weights_are_held_in_the_compute_dtype():
    of = trainer(dtype="bfloat16")
    for state in of.abstract_state, of.init_state(start(of)):
        assert {str(x.dtype) for x in jax.tree.leaves(state["frozen"])} == {"bfloat16"}
        assert {str(x.dtype) for x in jax.tree.leaves(state["params"])} == {"float32"}


def settings(cache, **changes):
    c = get_config()
    c.cache, c.train.epochs, c.train.learning_rate, c.base.steps = str(cache), 2, 1e-2, 0
    c.data.update(train=16, heldout=0, test=8)
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.export = True
    c.evals = dict(nll=evaluator("likelihood", "train", (0,), batch=8))
    c.update_from_flattened_dict({"lora.rank": 2, "lora.alpha": 4.0, "lora.targets": ("q_proj", "down_proj")} | changes)
    return c


@pytest.mark.slow
def test_a_finetune_trains_adapters_and_exports_them(tmp_path):
    """Measures are of what the adapters add. Another run starts from the merged export, where the first one ended."""
    first, second = settings(tmp_path / "cache"), tmp_path / "second"
    first.evals.distance = evaluator("distance", "train", (0,))
    first.evals.variance = evaluator("gradient_variance", "train", (), batch=8, batches=2)
    finetune.run(first, folder := tmp_path / "first")
    arrays = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(arrays) == 2 * 2 * 3 and all(np.abs(x).max() > 1e-5 for x in arrays.values())
    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["target_modules"]) == (2, 4.0, ["down_proj", "q_proj"])
    pairs = [(x, arrays[name.replace("lora_A", "lora_B")]) for name, x in arrays.items() if "lora_A" in name]
    added = sum(np.sum(np.square(2.0 * b.astype(np.float64) @ a)) for a, b in pairs)
    trace = read_trace(folder / "trace")
    np.testing.assert_allclose(trace.measures["distance_from_initialization"], [0, added], rtol=1e-4)

    again = {"model.path": str(folder / "export"), "train.epochs": 1}
    finetune.run(settings(tmp_path / "cache", **again), second)
    before, after = trace.split("train").nll, read_trace(second / "trace").split("train").nll
    np.testing.assert_allclose(after[0], before[-1], rtol=0, atol=1e-4)
    assert np.abs(before[0] - before[-1]).max() > 1e-2
    checkpoint = Checkpoint(second / "adapter")
    assert checkpoint.folder == folder / "export" and checkpoint.adapter
    with pytest.raises(UserError, match="begun with other weights"):
        (folder / "export" / "model.safetensors").write_bytes(_one_bit(folder / "export" / "model.safetensors"))
        finetune.run(settings(tmp_path / "cache", **again), second)


def _one_bit(file) -> bytes:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    return bytes(data)


def test_the_distance_is_of_merged_weights():
    config = dataclasses.replace(tiny.CONFIG, lora=LORA)
    params = tiny.parameters(config)
    rng = np.random.default_rng(0)
    changed = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype("f"), adapters.split(params)[0])
    got = squared_distance(config, adapters.join(changed, adapters.split(params)[1]), params)
    total = 0.0
    for part, names in ("attention", "qo"), ("mlp", ("up",)):
        for name in names:
            a, b = (changed["layers"][part][f"{name}{side}"].astype(np.float64) for side in ("_A", "_B"))
            for layer in range(config.L):
                delta = 3.0 * a[layer].reshape(-1, 2) @ b[layer].reshape(2, -1)
                total += np.sum(delta**2)
    np.testing.assert_allclose(got, total, rtol=1e-5)
