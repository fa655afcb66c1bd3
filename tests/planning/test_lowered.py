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


@pytest.mark.parametrize("name", ["train", "reference", "sources", "probe"])
def test_each_lowers_with_pairs_and_with_the_whole_update_where_it_is_needed(name):
    c = config()
    mesh = sharding.make_mesh(c.mesh, devices(PLACE))
    found, beside = lowered.lower(c, mesh, name)
    arrays = jax.tree.leaves(found.in_avals)
    weights = [x for x in arrays if x.dtype in (jnp.float32, jnp.bfloat16) and x.ndim > 1 and x.shape[-1] != 128]
    tokens = [x.shape for x in arrays if x.dtype == jnp.int32 and x.ndim > 1]
    assert tokens == [(8, 128) if name == "probe" else (16, 2, 128)]  # 6 prompts are filled up to the four chips
    half = [x for x in weights if x.dtype == jnp.bfloat16]
    assert (len(half) > 0) == (name == "probe")  # the directions, in the compute dtype
    assert (beside > 0) == (name in ("reference", "probe"))
    assert lowered.cost(c, PLACE, mesh, name).flops > 0
