"""Shapes that cannot be built and presets that do not exist are refused with the name of the mistake."""

import pytest

from premem_jax.errors import UserError
from premem_jax.models.architecture import PRESETS, ModelConfig, preset


def test_heads_must_divide():
    with pytest.raises(UserError, match="6 query heads do not divide into 4 key/value heads"):
        ModelConfig(V=10, D=8, L=1, N=6, K=4, H=4, F=8)


def test_odd_heads_cannot_rotate():
    with pytest.raises(UserError, match="H=5 must be even"):
        ModelConfig(V=10, D=8, L=1, N=4, K=2, H=5, F=8)


def test_overrides_replace_fields_and_are_checked():
    shape = preset("llama_tiny", V=77, tied_embedding=True)
    assert (shape.V, shape.tied_embedding, shape.D) == (77, True, PRESETS["llama_tiny"].D)
    with pytest.raises(UserError, match="query heads"):
        preset("llama_tiny", K=3)


@pytest.mark.parametrize(("asked", "meant"), [("llama3-8b", "llama3_8b"), ("lama_tiny", "llama_tiny")])
def test_a_misspelt_preset_is_answered_with_the_nearest(asked, meant):
    with pytest.raises(UserError, match=f"no model preset '{asked}'; did you mean '{meant}'"):
        preset(asked)


def test_an_unheard_of_preset_is_answered_with_all():
    with pytest.raises(UserError) as error:
        preset("zzz")
    assert "did you mean" not in str(error.value) and all(name in str(error.value) for name in PRESETS)


def test_llama3_8b_has_the_published_size():
    """8.03 B parameters: the size on the released model card (Dubey et al., arXiv 2407.21783)."""
    assert round(PRESETS["llama3_8b"].parameters / 1e9, 2) == 8.03
