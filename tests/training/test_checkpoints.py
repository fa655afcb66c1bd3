"""Checksums that a changed bit changes, on whatever mesh, and what becomes of a checkpoint in which one changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax import sharding
from premem_jax.training.checkpoints import Checkpoints, checksums
from tests import tiny

SUMS = jax.jit(checksums)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5 * 7 * 3 - 1), st.integers(0, 31), st.booleans())
def test_every_bit_of_every_element_counts(seed, place, bit, half):
    x = np.random.default_rng(seed).normal(size=(5, 7, 3)).astype("bfloat16" if half else np.float32)
    changed = x.copy()
    bits = changed.view(f"u{x.dtype.itemsize}").reshape(-1)
    bits[place] ^= bits.dtype.type(1 << bit % (8 * x.dtype.itemsize))
    assert int(SUMS(x)) != int(SUMS(changed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(12)))
def test_so_does_the_order(seed, order):
    x = np.random.default_rng(seed).integers(-9, 9, (3, 4)).astype(np.int32)
    moved = x.reshape(-1)[list(order)].reshape(3, 4)
    assert (int(SUMS(x)) == int(SUMS(moved))) == np.array_equal(x, moved)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "bool"])
def test_they_are_those_of_numpy(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 100, (4, 6))).astype(dtype)
    bits = np.asarray(x).view(f"u{x.dtype.itemsize}").astype(np.uint32)
    weights = [i * 2654435761 % 2**32 | 1 for i in range(24)]
    expected = sum(int(b) * w for b, w in zip(bits.reshape(-1), weights, strict=True)) % 2**32
    assert int(SUMS(x)) == expected


def test_a_changed_bit_in_a_file_is_noticed_and_the_checkpoint_before_is_taken(tmp_path, caplog):
    """Whatever file of it: Orbax raises, or the sums differ; and on the eight devices of another mesh."""
    trainer = tiny.trainer()
    state = trainer.init_state(jax.tree.map(jnp.asarray, tiny.trained()))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2):
        checkpoints.save(step, state | {"step": jnp.full_like(state["step"], step)})
    checkpoints.wait()
    checkpoints.close()
    biggest = max(
        (p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 4
    biggest.write_bytes(data)
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    found = Checkpoints(tmp_path / "checkpoints", keep=2).restore(mesh, trainer.abstract_state)
    assert int(found["step"]) == 1 and "checkpoint 2 cannot be read" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, found["params"], tiny.trained())
    assert len(list((tmp_path / "unreadable").iterdir())) == 1


def test_more_than_are_kept_are_no_more_once_one_is_restored(tmp_path):
    """As a kill leaves them between a save and the deletion of the oldest."""
    trainer = tiny.trainer()
    state = trainer.init_state(jax.tree.map(jnp.asarray, tiny.trained()))
    folder = tmp_path / "checkpoints"
    before = Checkpoints(folder, keep=3)
    for step in (1, 2, 3):
        before.save(step, state | {"step": jnp.full_like(state["step"], step)})
    before.wait()
    before.close()
    after = Checkpoints(folder, keep=2)
    assert int(after.restore(tiny.one_device(), trainer.abstract_state)["step"]) == 3
    after.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
