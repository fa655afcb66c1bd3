"""Conversion between Hugging Face's `config.json` and our shape, for all families. Every number is checked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from premem_jax.errors import UserError
from premem_jax.models.architecture import ModelConfig, RopeScaling

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Settings that would change the computation or the layout of the weights; they must be unset.
UNSUPPORTED = (
    *("attention_bias", "mlp_bias", "use_bidirectional_attention", "quantization_config", "transformers_weights"),
    *("partial_rotary_factor", "use_mrope"),
)
REQUIRED = object()


class Number(NamedTuple):
    """A number of config.json: its range, and its default."""

    kind: type
    low: float
    high: float
    default: object = REQUIRED
    null: bool = False  # whether transformers takes null for it


WIDTH, COUNT = (int, 1, 2**20), (int, 1, 1024)
POSITIVE = (float, 1e-12, 1e12)
NUMBERS = dict(
    vocab_size=Number(int, 1, 2**24),
    hidden_size=Number(*WIDTH),
    num_hidden_layers=Number(*COUNT),
    num_attention_heads=Number(*COUNT),
    intermediate_size=Number(*WIDTH),
    rms_norm_eps=Number(float, 1e-12, 1.0, 1e-6),
    max_position_embeddings=Number(int, 1, 2**31, None),
)
HEADS = dict(num_key_value_heads=Number(*COUNT, None, True), head_dim=Number(*WIDTH, None, True))
SLIDING = dict(sliding_window=Number(int, 1, 2**31, 4096, True))
QWEN = SLIDING | dict(max_window_layers=Number(int, 0, 1024, 28))
FAMILY_NUMBERS = dict(
    llama=HEADS,
    mistral=HEADS | SLIDING | dict(num_key_value_heads=Number(*COUNT, 8, True)),
    qwen2=HEADS | QWEN | dict(num_key_value_heads=Number(*COUNT, 32, True)),
    qwen3=HEADS | QWEN | dict(num_key_value_heads=Number(*COUNT, 32, True), head_dim=Number(*WIDTH, 128)),
    gemma2=dict(
        num_key_value_heads=Number(*COUNT, 4),
        head_dim=Number(*WIDTH, 256),
        query_pre_attn_scalar=Number(*POSITIVE, 256),
        attn_logit_softcapping=Number(*POSITIVE, 50.0, True),
        final_logit_softcapping=Number(*POSITIVE, 30.0, True),
        **SLIDING,
    ),
)
ROPE_NUMBERS = dict(
    factor=Number(float, 1.0, 1e6),
    low_freq_factor=Number(*POSITIVE),
    high_freq_factor=Number(*POSITIVE),
)

# Sizes in config.json, by our letters.
SIZES = dict(
    vocab_size="V",
    hidden_size="D",
    num_hidden_layers="L",
    num_attention_heads="N",
    num_key_value_heads="K",
    head_dim="H",
    intermediate_size="F",
)


def from_hf_config(config: Mapping) -> ModelConfig:
    """Converts the `config.json` of a model of one of the families to our shape.

    Missing keys have the defaults of `transformers`. Both spellings of rotary settings are read: `rope_theta` with
    `rope_scaling`, and `rope_parameters` of transformers 5.

    Raises:
      UserError: another family, an unsupported setting, a value of the wrong type or out of range, or contradicting
        settings; the message names the key.
    """
    family = config.get("model_type")
    if family not in [*FAMILIES]:
        raise UserError(
            f"config.json: model_type {repr(family)[:80]} is not supported (there are: {', '.join(FAMILIES)})"
        )
    for key in UNSUPPORTED:
        if config.get(key) not in (None, False):
            raise UserError(f"config.json: {key}={repr(config[key])[:80]} is not supported; unset is")
    numbers = NUMBERS | FAMILY_NUMBERS[family]
    if missing := [key for key, n in numbers.items() if n.default is REQUIRED and config.get(key) is None]:
        raise UserError(f"config.json lacks {', '.join(missing)}")
    own = {key: _number("config.json", config, key, number) for key, number in numbers.items()}
    own["tie_word_embeddings"] = config.get("tie_word_embeddings", family == "gemma2")
    if not isinstance(own["tie_word_embeddings"], bool):
        raise UserError(
            f"config.json: tie_word_embeddings={repr(own['tie_word_embeddings'])[:80]} must be true or false"
        )
    shape = dict(
        V=own["vocab_size"],
        D=own["hidden_size"],
        L=own["num_hidden_layers"],
        N=own["num_attention_heads"],
        F=own["intermediate_size"],
        norm_eps=own["rms_norm_eps"],
        tied_embedding=own["tie_word_embeddings"],
    )
    return ModelConfig(**shape, **_rope(config, own), **FAMILIES[family].read(config, own))


def _number(where: str, values: Mapping, key: str, number: Number):
    """A value of the right type and in its range; 2.0 is no int, and true is no number.

    Raises UserError otherwise.
    """
    value = values.get(key, number.default)
    if value is number.default or (value is None and number.null):
        return value
    wanted = (int,) if number.kind is int else (int, float)
    if value is REQUIRED or type(value) not in wanted or not number.low <= value <= number.high:
        what = "an integer" if number.kind is int else "a number"
        shown = repr(value)[:80]
        raise UserError(f"{where}: {key}={shown} must be {what} between {number.low:g} and {number.high:g}")
    return value


def _plain(config: Mapping, own: Mapping) -> dict:
    N, D = own["num_attention_heads"], own["hidden_size"]
    if own["head_dim"] is None and D % N:
        raise UserError(f"config.json: hidden_size={D} does not divide into num_attention_heads={N}, and no head_dim")
    return dict(
        K=own["num_key_value_heads"] or N,
        H=own["head_dim"] or D // N,
        activation=_activation(config, "hidden_act", "silu"),
    )


def _mistral(config: Mapping, own: Mapping) -> dict:
    return _plain(config, own) | dict(windows=(own["sliding_window"],))


def _qwen2(config: Mapping, own: Mapping) -> dict:
    return _plain(config, own) | dict(windows=_late_windows(config, own), biases=("q", "k", "v"))


def _qwen3(config: Mapping, own: Mapping) -> dict:
    return _plain(config, own) | dict(windows=_late_windows(config, own), head_norms=True)


def _late_windows(config: Mapping, own: Mapping) -> tuple[int | None, ...]:
    """The windows of Qwen: none, or those of all layers after the first `max_window_layers`."""
    use, L = config.get("use_sliding_window", False), own["num_hidden_layers"]
    if not isinstance(use, bool):
        raise UserError(f"config.json: use_sliding_window={repr(use)[:80]} must be true or false")
    local = own["sliding_window"] if use else None
    first = L if local is None else own["max_window_layers"]
    return _windows(config, local, ["full_attention" if i < first else "sliding_attention" for i in range(L)])


def _gemma2(config: Mapping, own: Mapping) -> dict:
    scale, H = own["query_pre_attn_scalar"] ** -0.5, own["head_dim"]
    return dict(
        K=own["num_key_value_heads"],
        H=H,
        norm_offset=1.0,
        post_norms=True,
        activation=_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        query_scale=None if scale == H**-0.5 else scale,
        attention_softcap=own["attn_logit_softcapping"],
        final_softcap=own["final_logit_softcapping"],
        windows=_windows(
            config,
            own["sliding_window"],
            ["full_attention" if i % 2 else "sliding_attention" for i in range(own["num_hidden_layers"])],
        ),
        scaled_embedding=True,
    )


def _windows(config: Mapping, local: int | None, otherwise: list[str]) -> tuple[int | None, ...]:
    """The shortest pattern that, repeated, gives the window of each layer; `otherwise` are the kinds by default."""
    kinds, L = config.get("layer_types"), len(otherwise)
    kinds = otherwise if kinds is None else kinds
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != L or any(kind not in known for kind in kinds):
        raise UserError(f"config.json: layer_types must name {' or '.join(known)} for each of {L} layers")
    if local is None and known[0] in kinds:
        raise UserError("config.json: sliding_window is null, and layer_types has sliding_attention")
    windows = tuple(local if kind == "sliding_attention" else None for kind in kinds)
    return next(windows[:g] for g in range(1, L + 1) if L % g == 0 and windows == windows[:g] * (L // g))


def _activation(config: Mapping, key: str, default: str) -> str:
    name = config.get(key)
    name = default if name is None else name
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"config.json: {key}: activation {repr(name)[:80]} is not supported (there are: {known})")
    return ACTIVATIONS[name]


def _rope(config: Mapping, own: Mapping) -> dict:
    """Rotary settings. Two spellings that differ are refused, because releases of transformers read different ones."""
    given = {key: config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)}
    if strange := [key for key, value in given.items() if not isinstance(value, dict)]:
        raise UserError(f"config.json: {strange[0]} must be an object, not {repr(given[strange[0]])[:80]}")
    if len(given) == 2 and len({_plain_rope(rope) for rope in given.values()}) == 2:
        raise UserError("config.json: rope_scaling and rope_parameters differ; remove the one that is not the model's")
    rope = given.get("rope_scaling", {}) | given.get("rope_parameters", {})
    thetas = {
        _number("config.json", values, "rope_theta", Number(*POSITIVE))
        for values in (rope, config)
        if values.get("rope_theta") is not None
    }
    if len(thetas) > 1:
        raise UserError(f"config.json: rope_theta is {' and '.join(map(repr, sorted(thetas)))}; keep the model's")
    theta = thetas.pop() if thetas else 10_000.0
    kinds = {rope[key] if isinstance(rope[key], str) else "?" for key in ("rope_type", "type") if key in rope}
    kinds = kinds or {"default"}
    nested = any(isinstance(value, dict | list) for value in rope.values())
    if len(kinds) > 1 or not kinds <= {"default", "llama3"} or nested or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"config.json: rotary positions {repr(rope)[:200]} are not supported (rope_type default or llama3 is)"
        )
    if kinds == {"default"}:
        return dict(rope_theta=theta)
    if missing := [key for key in ROPE_NUMBERS if rope.get(key) is None]:
        raise UserError(f"config.json: rope_type llama3 lacks {missing[0]}")
    values = [_number("config.json: rope_type llama3", rope, key, number) for key, number in ROPE_NUMBERS.items()]
    key, inside = "original_max_position_embeddings", rope
    if config.get(key) is not None:
        if rope.get(key) not in (None, config[key]):
            raise UserError(f"config.json: {key} is {config[key]!r} and {rope[key]!r}; keep the model's")
        inside = config
    context = _number("config.json", inside, key, Number(int, 1, 2**31, None, True)) or own["max_position_embeddings"]
    if context is None:
        raise UserError("config.json: rope_type llama3 lacks original_max_position_embeddings")
    return dict(rope_theta=theta, rope_scaling=RopeScaling(*values, context))


def _plain_rope(rope: Mapping) -> str:
    """Rotary settings in a normal form, without the base frequency, for comparison."""
    said = {"rope_type" if key == "type" else key: value for key, value in rope.items() if key != "rope_theta"}
    return repr(sorted(said.items()))


def to_hf_config(config: ModelConfig) -> dict:
    """Converts a shape, without adapters, to the content of `config.json`; the inverse of `from_hf_config`.

    The family is the first that has such a shape. The context length is that of the published models, or the scaled
    one; nothing here depends on it. Rotary settings are in the older spelling, which all versions of `transformers`
    read.

    Raises:
      UserError: no family has this combination of fields.
    """
    config, windows = _normal(dataclasses.replace(config, lora=None))
    for name, family in FAMILIES.items():
        out = (
            dict(architectures=[family.architecture], model_type=name) | _common(config) | family.write(config, windows)
        )
        try:
            if _normal(from_hf_config(out)) == (config, windows):
                return out
        except UserError:
            continue
    raise UserError(f"no family ({', '.join(FAMILIES)}) has a model of this shape, so it has no config.json: {config}")


def _normal(config: ModelConfig) -> tuple[ModelConfig, tuple[int | None, ...]]:
    """A shape with the windows of all its layers spelt out, and these windows."""
    windows = config.windows * (config.L // len(config.windows))
    return dataclasses.replace(config, windows=windows), windows


def _common(config: ModelConfig) -> dict:
    """What config.json says in every family."""
    out = dict(
        **{key: getattr(config, letter) for key, letter in SIZES.items()},
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=8192,
        tie_word_embeddings=config.tied_embedding,
        hidden_act={ours: theirs for theirs, ours in ACTIVATIONS.items()}[config.activation],
    )
    if scaling := config.rope_scaling:
        out["rope_scaling"] = dict(
            rope_type="llama3",
            factor=scaling.factor,
            low_freq_factor=scaling.low_freq_factor,
            high_freq_factor=scaling.high_freq_factor,
            original_max_position_embeddings=scaling.original_context,
        )
        out["max_position_embeddings"] = int(scaling.factor * scaling.original_context)
    return out


Windows = tuple[int | None, ...]  # of all layers


def _write_qwen(config: ModelConfig, windows: Windows) -> dict:
    local = next((window for window in windows if window), None)
    return dict(
        use_sliding_window=local is not None,
        sliding_window=local,
        max_window_layers=windows.index(local) if local else config.L,
        layer_types=_kinds(windows),
    )


def _write_gemma2(config: ModelConfig, windows: Windows) -> dict:
    whole = round(config.attention_scale**-2)  # as published, where rounding is all that keeps it from that
    return dict(
        hidden_activation={ours: theirs for theirs, ours in ACTIVATIONS.items()}[config.activation],
        query_pre_attn_scalar=whole if whole**-0.5 == config.attention_scale else config.attention_scale**-2,
        attn_logit_softcapping=config.attention_softcap,
        final_logit_softcapping=config.final_softcap,
        sliding_window=next((window for window in windows if window), 4096),
        layer_types=_kinds(windows),
    )


def _kinds(windows: Windows) -> list[str]:
    return ["sliding_attention" if window else "full_attention" for window in windows]


class Family(NamedTuple):
    """Class in `transformers`; fields of our shape from a config.json and its numbers; what it says of them."""

    architecture: str
    read: Callable[[Mapping, Mapping], dict]
    write: Callable[[ModelConfig, Windows], dict]


FAMILIES = dict(
    llama=Family("LlamaForCausalLM", _plain, lambda config, windows: {}),
    mistral=Family("MistralForCausalLM", _mistral, lambda config, windows: dict(sliding_window=windows[0])),
    qwen2=Family("Qwen2ForCausalLM", _qwen2, _write_qwen),
    qwen3=Family("Qwen3ForCausalLM", _qwen3, _write_qwen),
    gemma2=Family("Gemma2ForCausalLM", _gemma2, _write_gemma2),
)
