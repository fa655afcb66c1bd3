"""Published `config.json` files, published sizes, and what is refused before anything is loaded."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.models.architecture import GEMMA2, PRESETS, ModelConfig, RopeScaling, preset
from premem_jax.models.decoder import init
from premem_jax.models.hf import from_hf_state, tensors, to_hf_state
from premem_jax.models.hf_config import from_hf_config, to_hf_config
from tests import tiny
from tests.models.published import LLAMA3_2_1B, PUBLISHED

NAMES = ("llama3_2_1b", "gemma2_9b", "qwen2_5_7b", "qwen3_8b", "mistral_7b")  # of PUBLISHED
SIZES = dict(
    llama3_8b=8_030_261_248,
    llama3_1_8b=8_030_261_248,
    llama3_2_1b=1_235_814_400,
    gemma2_9b=9_241_705_984,
    gemma2_2b=2_614_341_888,
    llama3_2_3b=3_212_749_824,
    llama3_3_70b=70_553_706_496,
    mistral_7b=7_241_732_096,
    qwen2_5_1_5b=1_543_714_304,
    qwen2_5_7b=7_615_616_512,
    qwen3_8b=8_190_735_360,
)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    """Of the formula, of our tree and of the checkpoint's tensors."""
    config = preset(name)
    tree = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    stored = sum(int(np.prod(tensor.shape)) for tensor in tensors(config))
    assert SIZES[name] == config.parameters == stored == sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("published", "name"), [*zip(PUBLISHED.values(), NAMES, strict=True)])
def test_published_configs(published, name):
    assert from_hf_config(published) == PRESETS[name]
    assert from_hf_config(transformers.AutoConfig.for_model(**published).to_dict()) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_the_config_of_a_preset_is_read_back(name):
    assert from_hf_config(json.loads(json.dumps(to_hf_config(PRESETS[name])))) == PRESETS[name]


sizes = st.integers(1, 8)
shapes = st.builds(
    dict,
    V=st.integers(3, 99),
    D=sizes,
    K=sizes,
    F=sizes,
    H=sizes.map(lambda half: 2 * half),
    rope_theta=st.floats(1, 1e6),
    norm_eps=st.floats(1e-9, 1e-3),
    tied_embedding=st.booleans(),
    rope_scaling=st.none()
    | st.builds(RopeScaling, st.floats(1, 64), st.floats(0.5, 1), st.floats(2, 8), st.integers(1, 9000)),
)
gemmas = st.builds(
    dict,
    attention_softcap=st.none() | st.floats(1, 99),
    final_softcap=st.none() | st.floats(1, 99),
    query_scale=st.integers(100, 999).map(lambda scalar: scalar**-0.5),
    windows=st.sampled_from([(None,), (7,), (7, None), (None, 7), (7, 7, None)]),
    activation=st.sampled_from(["gelu_tanh", "silu"]),
)
gemmas = gemmas.map(lambda own: GEMMA2 | own)
llamas = st.just({})
mistrals = st.builds(dict, windows=st.just((5,)))
qwens = st.builds(
    lambda own, windows: own | dict(windows=windows),
    st.sampled_from([dict(head_norms=True), dict(biases=("q", "k", "v"))]),
    st.sampled_from([(None,), (7,), (None, 7), (None, 7, 7)]),
)


@settings(deadline=None, max_examples=40)  # the first use of transformers imports the half of it
@given(shape=shapes, own=llamas | mistrals | qwens | gemmas, layers=st.integers(1, 3), groups=st.integers(1, 4))
def test_any_config_of_a_family_is_read_back(shape, own, layers, groups):
    """And by transformers to the same as well."""
    shape = own | shape
    L = 6 * layers
    N = groups * shape["K"]
    config = ModelConfig(L=L, N=N, **shape | dict(D=N * shape["D"]))  # transformers insists on whole multiples
    written = json.loads(json.dumps(to_hf_config(config)))
    assert from_hf_config(written) == config
    assert from_hf_config(transformers.AutoConfig.for_model(**written).to_dict()) == config


@pytest.mark.parametrize(
    "change",
    [
        dict(windows=(4, None)),
        dict(norm_offset=1.0),
        dict(post_norms=True),
        dict(final_softcap=3.0),
        dict(biases=("q",)),
        dict(biases=("q", "k", "v"), head_norms=True),
    ],
)
def test_a_mixture_of_the_families_has_no_config(change):
    with pytest.raises(UserError, match="no family"):
        to_hf_config(dataclasses.replace(tiny.CONFIG, **change))


def test_rotary_settings_of_transformers_5():
    rope = LLAMA3_2_1B["rope_scaling"] | dict(rope_theta=LLAMA3_2_1B["rope_theta"])
    newer = {k: v for k, v in LLAMA3_2_1B.items() if not k.startswith("rope")} | dict(rope_parameters=rope)
    assert from_hf_config(newer) == PRESETS["llama3_2_1b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="gemma3_text"), "'gemma3_text' is not supported.*llama, mistral, qwen2, qwen3, gemma2"),
        (dict(attention_bias=True), "attention_bias"),
        (dict(quantization_config=dict(bits=4)), "quantization_config"),
        (dict(rope_scaling=dict(type="linear", factor=2.0)), "linear"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "lacks low_freq_factor"),
        (dict(hidden_act="relu"), "'relu'"),
        (dict(hidden_size=None), "lacks hidden_size"),
    ],
)
def test_what_the_decoder_does_not_have_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        from_hf_config(LLAMA3_2_1B | change)


def test_a_checkpoint_that_does_not_fit_is_refused():
    state = to_hf_state(tiny.parameters(), tiny.CONFIG)
    without = {name: x for name, x in state.items() if "layers.1.mlp.up" not in name}
    with pytest.raises(UserError, match=r"misses model.layers.1.mlp.up_proj.weight"):
        from_hf_state(without, tiny.CONFIG)
    with pytest.raises(UserError, match=r"has unknown model.layers.0.q_norm.weight"):
        from_hf_state(state | {"model.layers.0.q_norm.weight": np.ones(3)}, tiny.CONFIG)
    with pytest.raises(UserError, match=r"lm_head.weight has shape \(32, 40\).*\(40, 32\)"):
        from_hf_state(state | {"lm_head.weight": state["lm_head.weight"].T}, tiny.CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(windows=(4, None), L=3), "3 layers do not divide"),
        (dict(windows=(0,)), "must be positive"),
        (dict(activation="relu"), "activation 'relu'"),
    ],
)
def test_shapes_that_cannot_be_built(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(tiny.CONFIG, **change)


def test_rope_scaling_must_rise():
    with pytest.raises(UserError, match="high_freq_factor > low_freq_factor"):
        ModelConfig(V=10, D=8, L=1, N=2, K=2, H=4, F=8, rope_scaling=RopeScaling(8.0, 4.0, 1.0, 8192))


def test_gemma_has_one_rule_per_parameter_and_nothing_large_left_whole():
    params = jax.eval_shape(lambda: init(preset("gemma2_9b"), jax.random.key(0)))
    mesh = sharding.make_mesh(dict(data=1, fsdp=2, tensor=4))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        assert sum(bool(re.search(rule, name)) for rule, _ in sharding.RULES) == 1, name
        part = jax.sharding.NamedSharding(mesh, sharding.spec(name, leaf.shape, mesh)).shard_shape(leaf.shape)
        assert 4 * leaf.size <= 2**24 or int(np.prod(part)) == leaf.size // 8, name
