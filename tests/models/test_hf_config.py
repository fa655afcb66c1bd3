"""Every number of a `config.json`, wrong in every way; and settings that are there twice, or are not ours."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.errors import UserError
from premem_jax.models.hf_config import FAMILY_NUMBERS, NUMBERS, from_hf_config
from tests.models.published import GEMMA2_9B, LLAMA3_2_1B, PUBLISHED, QWEN2_5_7B

KEYS = [(family, key) for family, own in FAMILY_NUMBERS.items() for key in NUMBERS | own]
WRONG = ["8", "", "null", 0, -1, 10**10, 10**400, True, False, [8], {}, 0.5j, 1e300]
ROPE = LLAMA3_2_1B["rope_scaling"]


@pytest.mark.parametrize(("family", "key"), KEYS)
def test_a_wrong_number_is_refused_by_its_key(family, key):
    for wrong in WRONG:
        if wrong == 0 and key == "max_window_layers":
            continue  # all layers have a window
        if (wrong == 10**10 and "scalar" in key + key[-11:]) or (wrong == 10**10 and "softcap" in key):
            continue  # large, and a number
        with pytest.raises(UserError, match=f"config.json: {key}="):
            from_hf_config(PUBLISHED[family] | {key: wrong})


def test_ten_million_layers_are_refused_at_once():
    started = time.process_time()
    with pytest.raises(UserError, match="num_hidden_layers=10000000"):
        from_hf_config(LLAMA3_2_1B | dict(num_hidden_layers=10**7))
    assert time.process_time() - started < 1


@given(
    key=st.sampled_from(
        sorted({key for config in PUBLISHED.values() for key in config} | {"rope_parameters", "layer_types"})
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROPE, "type", "x"]), inner),
    ),
    family=st.sampled_from(list(PUBLISHED)),
)
@settings(max_examples=1000, deadline=None)
def test_any_value_is_taken_or_refused_in_one_line(key, value, family):
    try:
        from_hf_config(PUBLISHED[family] | {key: value})
    except UserError as error:
        assert "\n" not in str(error) or "\n" in str(value)


@pytest.mark.parametrize(
    "change",
    [
        dict(rope_parameters=ROPE | dict(factor=8.0)),
        dict(rope_parameters=ROPE | dict(rope_theta=10_000.0)),
        dict(rope_scaling=ROPE | dict(type="linear")),
        dict(rope_scaling=ROPE | dict(rope_type=["llama3"])),
        dict(rope_scaling=ROPE | dict(factor="8")),
        dict(rope_scaling=dict(rope_type="yarn", factor=2.0)),
        dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)),
        dict(rope_scaling="llama3"),
        dict(rope_parameters=dict(full_attention=dict(rope_theta=1.0)), rope_scaling=None),
        dict(partial_rotary_factor=0.5),
        dict(original_max_position_embeddings=4096),
        dict(transformers_weights="other.safetensors"),
        dict(tie_word_embeddings="false"),
        dict(tie_word_embeddings=None),
        dict(attention_bias="false"),
        dict(mlp_bias=True),
        dict(head_dim=None, hidden_size=2049),
        dict(rope_theta=0),
        dict(rope_theta="1e4"),
    ],
)
def test_contradictions_and_foreign_settings_are_refused(change):
    with pytest.raises(UserError, match=r"config\.json"):
        from_hf_config(LLAMA3_2_1B | change)


def test_windows_need_a_size():
    for change in dict(sliding_window=None), dict(layer_types=["sliding_attention"]), dict(layer_types=42 * ["x"]):
        with pytest.raises(UserError, match=r"sliding_window|layer_types"):
            from_hf_config(GEMMA2_9B | change)
    from_hf_config(GEMMA2_9B | dict(sliding_window=None, layer_types=42 * ["full_attention"]))


def test_windows_of_qwen_begin_at_a_layer_and_only_if_they_are_used():
    assert from_hf_config(QWEN2_5_7B).windows == (None,)
    used = QWEN2_5_7B | dict(use_sliding_window=True, sliding_window=64)
    assert from_hf_config(used).windows == (None,)  # of 28 layers, those from the 28th on
    assert from_hf_config(used | dict(max_window_layers=0)).windows == (64,)
    assert from_hf_config(used | dict(max_window_layers=20)).windows == 20 * (None,) + 8 * (64,)
    for change in dict(use_sliding_window="true"), dict(layer_types=28 * ["sliding_attention"]):
        with pytest.raises(UserError, match=r"use_sliding_window|layer_types"):
            from_hf_config(QWEN2_5_7B | change)
