"""Counts of arithmetic and traffic against other ways to count: the parameters themselves, masks, token by token."""

import jax
import numpy as np
import pytest

from premem_jax.models import costs
from premem_jax.models.architecture import PRESETS, preset
from premem_jax.models.attention import causal_mask
from premem_jax.models.costs import Cost, Layout
from premem_jax.models.decoder import init
from premem_jax.running.topology import topology

every_preset = pytest.mark.parametrize("name", PRESETS)
SHORT = {name: preset(name, windows=tuple(w and 5 for w in preset(name).windows)) for name in PRESETS}


@every_preset
def test_matrices_are_the_parameters_that_tokens_meet(name):
    """Everything but norms, biases and, where the head is an array of its own, the embedding."""
    config = preset(name)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    sizes = {path[-1].key + str(i): x.size for i, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(params))}
    met = sum(size for key, size in sizes.items() if not key.startswith("scale") and "_bias" not in key)
    assert costs.matrices(config) == met - (0 if config.tied_embedding else config.V * config.D)
    assert sum(sizes.values()) == config.parameters


@every_preset
def test_attention_is_what_the_masks_let_through(name):
    config, T = SHORT[name], 23
    pairs = sum(int(causal_mask(T, window)[0, 7:].sum()) for window in config.windows) * config.L / len(config.windows)
    assert costs.attention_flops(config, 7, T) == 2 * 2 * config.N * config.H * pairs


@every_preset
def test_sampling_is_prefill_and_one_token_at_a_time(name):
    config, B, R, P, T = SHORT[name], 3, 2, 11, 4
    layout = Layout(1, 1, 1)
    head = 2 * config.V * config.D
    prefill = sum(2 * costs.matrices(config) - head + costs.attention_flops(config, t, t + 1) for t in range(P))
    decode = sum(2 * costs.matrices(config) + costs.attention_flops(config, P + t, P + t + 1) for t in range(T))
    assert costs.sample(config, layout, B=B, R=R, P=P, T=T).flops == pytest.approx(B * (prefill + R * decode))


def test_a_forward_pass_costs_what_the_compiler_counts():
    """XLA's own count for an unrolled model, which looks at whole rows of keys instead of the causal half."""
    from premem_jax.models.decoder import build

    config, B, T = preset("llama_small"), 2, 64
    model = build(config)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((B, T), np.int32)
    forward = lambda p, t: (lambda d: d.logits(d(t)[0]))(model.bind(p))
    counted = jax.jit(forward).lower(params, tokens).cost_analysis()["flops"]
    ours = costs.forward_flops(config, B, T)
    ours += B * (4 * config.N * config.H * T * T * config.L - costs.attention_flops(config, 0, T))
    assert 1 < counted / ours < 1.05  # norms, rotations, softmax and activations are on top


def test_one_chip_talks_to_nobody_and_slices_talk_over_the_network():
    config = preset("llama3_8b")
    shapes = dict(B=128, T=512, micro_batches=4)
    alone = costs.train(config, Layout(1, 1, 1), 1, **shapes)
    assert alone.ici_bytes == alone.dcn_bytes == 0
    one, two = (costs.train(config, Layout(slices, 16, 1), slices, **shapes) for slices in (1, 2))
    assert one.flops == two.flops == alone.flops
    assert one.dcn_bytes == 0 and two.dcn_bytes == 4 * config.parameters / 16
    # Three passes of bf16 weights for each of four micro-batches, of which a chip has a sixteenth.
    assert one.ici_bytes == pytest.approx(3 * 4 * 2 * config.parameters * 15 / 16)


@pytest.mark.parametrize("bound", ["flops", "hbm_bytes", "ici_bytes", "dcn_bytes"])
def test_the_roofline_is_the_slowest_part(bound):
    place = topology("v5e:4x4", slices=2)
    parts = dict(flops=1.0, hbm_bytes=1.0, ici_bytes=1.0, dcn_bytes=1.0)
    slow = Cost(**parts | {bound: 1e18}).seconds(place)
    rates = dict(flops=32 * 197e12, hbm_bytes=819e9, ici_bytes=200e9, dcn_bytes=3.1e9)
    assert slow == pytest.approx(1e18 / rates[bound])
