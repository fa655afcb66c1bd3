"""Attention backends against the reference: the TPU kernel in its interpreter, the GPU library where there is one."""

import itertools
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.models import backends
from premem_jax.models.attention import attend, causal_mask
from premem_jax.models.backends import SelfAttention

CASES = [
    dict(window=None, scale=0.1, cap=None),
    dict(window=None, scale=0.1, cap=2.0),
    dict(window=100, scale=0.1, cap=2.0),
    dict(window=130, scale=0.2, cap=None),
]


def arrays(B=2, T=256, N=4, K=2, H=128, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, T, N, H), (B, K, T, H), (B, K, T, H)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def with_gradients(attention, case, qkv):
    """Output and the gradients of a scalar of it, for queries, keys and values."""
    weight = jnp.cos(jnp.arange(qkv[0].size)).reshape(qkv[0].shape)
    scalar = lambda *qkv: jnp.sum(attention(*qkv, **case).astype(jnp.float32) * weight)
    return jax.jit(partial(attention, **case))(*qkv), jax.jit(jax.grad(scalar, argnums=(0, 1, 2)))(*qkv)


def segments(B=2, T=256):
    """Of three, two, ... sequences in a row, with padding at its end; borders lie within blocks and at them."""
    borders = np.array([[100, 128, 180, 240], [128, 128, 250, 256]])[:B]
    return jnp.asarray((1 + (np.arange(T) >= borders[..., None]).sum(axis=1)) % 5, jnp.int32)


def apart(attention, segments_BT, *qkv, **case):
    """`attention` on each segment by itself."""

    def of(b, start, stop):
        q, k, v = (x[b : b + 1] for x in qkv)
        return attention(q[:, start:stop], k[:, :, start:stop], v[:, :, start:stop], **case)

    outs = []
    for b, row in enumerate(np.asarray(segments_BT)):
        ends = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        outs.append(jnp.concatenate([of(b, *part) for part in itertools.pairwise(ends)], axis=1))
    return jnp.concatenate(outs)


@pytest.mark.parametrize("case", CASES[1:3])
def test_segments_do_not_see_each_other(case):
    qkv, attention = arrays(H=16), SelfAttention("reference")
    expected = with_gradients(partial(apart, attention, segments()), case, qkv)
    found = with_gradients(lambda *qkv, **case: attention(*qkv, segments(), **case), case, qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), expected, found)


@pytest.mark.parametrize("case", [CASES[1], dict(window=400, scale=0.1, cap=None)])
def test_far_keys_count_where_a_segment_reaches_back(case):
    """The second row's first segment ends within the fourth block, which also is where a row of the first begins."""
    qkv, ends = arrays(T=640, H=8), np.array([[256, 384, 639], [100, 420, 500]])
    segments_BT = jnp.asarray((np.arange(640) >= ends[..., None]).sum(axis=1), jnp.int32)
    found = with_gradients(partial(backends.attend_causally, segments_BT=segments_BT), case, qkv)
    expected = with_gradients(partial(apart, backends.attend_causally, segments_BT), case, qkv)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_far_keys_are_left_out_where_none_reaches_back():
    """As values of keys that are seen, though with weight 0, numbers that are not finite would spread."""
    q, k, v = arrays(B=1, T=640, H=8)
    segments_BT = jnp.asarray(np.arange(640)[None] // 120, jnp.int32)
    spread = backends.attend_causally(q, k, v.at[:, :, :120].set(np.nan), segments_BT, **CASES[0])
    whole = backends.attend_causally(q, k, v, segments_BT, **CASES[0])
    np.testing.assert_array_equal(spread[:, 384:], whole[:, 384:])
    assert np.isnan(spread[:, :384]).any(axis=(2, 3)).all()


def test_the_tpu_kernel_with_segments_on_a_mesh():
    mesh = sharding.make_mesh(dict(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    on = lambda *place: lambda *qkv, **case: SelfAttention(*place)(*qkv, segments(), **case)
    for case in CASES[2:]:
        expected, found = (with_gradients(on(*place), case, arrays()) for place in (["reference"], ["splash", mesh]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), expected, found)


@pytest.mark.parametrize("case", CASES)
def test_the_tpu_kernel_equals_the_reference(case):
    qkv = arrays()
    expected = with_gradients(SelfAttention("reference"), case, qkv)
    found = with_gradients(SelfAttention("splash"), case, qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), expected, found)


@pytest.mark.parametrize("T", [1, 128, 300])
@pytest.mark.parametrize("case", CASES)
def test_the_reference_equals_attention_under_the_whole_mask(case, T):
    """Block by block and at once; 300 queries are two blocks and a part of one, and windows end within blocks."""
    qkv = arrays(T=T, H=16)
    at_once = lambda *qkv, window, **rest: attend(*qkv, causal_mask(T, window), **rest)
    expected, found = (with_gradients(attention, case, qkv) for attention in (at_once, SelfAttention("reference")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), expected, found)


def test_the_tpu_kernel_on_a_mesh():
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    qkv, case = arrays(B=4), CASES[2]
    found = with_gradients(SelfAttention("splash", mesh), case, qkv)
    expected = with_gradients(SelfAttention("reference"), case, qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), expected, found)


def test_every_case_changes_the_result():
    qkv = arrays(B=1, T=160)
    outs = [np.asarray(SelfAttention("reference")(*qkv, **case)) for case in CASES]
    assert all(np.abs(a - b).max() > 1e-2 for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("case", [case for case in CASES if case["cap"] is None])
def test_the_gpu_library_equals_the_reference(case):
    qkv = arrays(dtype="bfloat16")
    expected = with_gradients(SelfAttention("reference"), case, qkv)
    found = with_gradients(SelfAttention("cudnn"), case, qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-2, rtol=5e-2), expected, found)


@pytest.mark.parametrize(
    "backend, shape, cap, message",
    [
        ("splash", dict(T=100), None, "length 100 and head width 128 must be multiples of 128"),
        ("splash", dict(H=64), None, "length 256 and head width 64 must be multiples of 128"),
        ("cudnn", {}, None, "needs a GPU, and this is a cpu"),
    ],
)
def test_a_backend_that_does_not_support_the_case_says_so(backend, shape, cap, message):
    with pytest.raises(UserError, match=f"model.attention={backend}: {message}; set model.attention=auto"):
        SelfAttention(backend)(*arrays(**shape), window=None, scale=1.0, cap=cap)


class _Mesh:
    """Stands for the devices of a machine that is not here: all that the choice looks at."""

    def __init__(self, platform, **shape):
        self.shape = shape
        self.devices = np.array([type("Device", (), dict(platform=platform))()])


@pytest.mark.parametrize(
    "platform, shape, case, chosen",
    [
        ("cpu", {}, CASES[0], "reference"),
        ("tpu", {}, CASES[2], "splash"),
        ("tpu", dict(T=96), CASES[0], "reference"),
        ("tpu", dict(B=3), CASES[0], "reference"),
        ("gpu", dict(dtype="bfloat16"), CASES[3], "cudnn"),
        ("gpu", dict(dtype="bfloat16"), CASES[1], "reference"),
        ("gpu", {}, CASES[0], "reference"),
        ("gpu", dict(dtype="bfloat16"), CASES[3] | dict(segments_BT=segments()), "reference"),
    ],
)
def test_the_choice_is_by_device_and_case_and_is_said_once(platform, shape, case, chosen, monkeypatch, caplog):
    backends._say.cache_clear()
    ran = []
    record = lambda name: lambda *args, **kw: ran.append(name)
    monkeypatch.setattr(SelfAttention, "_splash", record("splash"))
    monkeypatch.setattr(backends, "_cudnn", record("cudnn"))
    monkeypatch.setattr(backends, "attend_causally", record("reference"))
    attention = SelfAttention("auto", _Mesh(platform, data=1, fsdp=2, tensor=1))
    with caplog.at_level(logging.INFO, "premem_jax"):
        for _ in range(3):
            attention(*arrays(**shape), **case)
    assert ran == [chosen] * 3
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [f"attention on {platform}: {chosen}"]
