"""The programs of preference training that a plan compiles, on shapes alone."""

import jax
import jax.numpy as jnp
import pytest

from configs import plan
from premem_jax import sharding
from premem_jax.planning import lowered
from premem_jax.running.topology import devices, topology

pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[plan]'")
PLACE = topology("v5e:2x2")


def config(**changes):
    c = plan.get_config("task=dynamics_hh,model=llama_tiny,topology=v5e:2x2")
    c.update_from_flattened_dict({"data.buckets": (128,), "model.vocab_chunks": 1, "influence.prompts": 6} | changes)
    return c


def test_preference_training_has_programs_of_its_own():
    assert lowered.names_of(config()) == ("train", "reference", "sources", "probe")
    assert lowered.names_of(config(**{"influence.every": 0})) == ("train", "reference")


def whole_numbers(found):
    """Shapes of a program's tables of whole numbers."""
    return [x.shape for x in jax.tree.leaves(found.in_avals) if x.dtype == jnp.int32 and x.ndim > 1]


def test_an_update_whose_examples_share_rows_has_one_for_each_chip():
    c = config(**{"train.packed_tokens": (64, 128)})
    mesh = sharding.make_mesh(c.mesh, devices(PLACE))
    assert whole_numbers(lowered.lower(c, mesh, "train")[0]) == [(16, 2), (4, 512), (4, 512)]
    assert lowered.cost(c, PLACE, mesh, "train").flops < lowered.cost(config(), PLACE, mesh, "train").flops
    assert lowered.cost(c, PLACE, mesh, "reference") == lowered.cost(config(), PLACE, mesh, "reference")


def test_of_two_evaluators_with_one_program_each_has_its_own_cost():
    c = plan.get_config("task=gsm8k,model=llama_tiny,topology=v5e:2x2")
    for batch, split in (64, "train"), (128, "test"):
        c.evals[f"{split}_likelihood"].update(batch=batch, packed_tokens=())
    mesh = sharding.make_mesh(c.mesh, devices(PLACE))
    flops = lambda name: {key: cost.flops for key, cost in lowered.batch_costs(c, mesh, name).items()}
    score, sample = flops("score"), flops("sample")
    assert score["test_likelihood"] == 2 * score["train_likelihood"]
    passed = sample["train_accuracy"] - sample["test_accuracy"]  # over references, as many as are scored
    assert passed == pytest.approx(score["train_likelihood"], rel=1e-9) and flops("train") == {}


@pytest.mark.parametrize("name", ["train", "reference", "sources", "probe"])
def test_each_lowers_with_pairs_and_with_the_whole_update_where_it_is_needed(name):
    c = config()
    mesh = sharding.make_mesh(c.mesh, devices(PLACE))
    found, beside = lowered.lower(c, mesh, name)
    arrays = jax.tree.leaves(found.in_avals)
    weights = [x for x in arrays if x.dtype in (jnp.float32, jnp.bfloat16) and x.ndim > 1 and x.shape[-1] != 128]
    alone = {"probe": [(8, 128)], "reference": [(32, 128)]}  # 6 prompts are filled up to the four chips
    assert whole_numbers(found) == alone.get(name, [(16, 2), (32, 128), (32, 128)])  # responses, segments, tokens
    half = [x for x in weights if x.dtype == jnp.bfloat16]
    assert (len(half) > 0) == (name == "probe")  # the directions, in the compute dtype
    assert (beside > 0) == (name in ("reference", "probe"))
    assert lowered.cost(c, PLACE, mesh, name).flops > 0
