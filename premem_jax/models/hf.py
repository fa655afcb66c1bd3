"""Hugging Face's names, layouts and `config.json` of the two families."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from premem_jax.errors import UserError
from premem_jax.models.config import ModelConfig, RopeScaling

FAMILIES = ("llama", "gemma2")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# The sizes in a config.json, by our letters.
SIZES = dict(
    vocab_size="V",
    hidden_size="D",
    num_hidden_layers="L",
    num_attention_heads="N",
    num_key_value_heads="K",
    head_dim="H",
    intermediate_size="F",
)

# What may be stored beside the weights and says nothing: constants that old exports wrote out.
DERIVED = ("rotary_emb.inv_freq",)


class Tensor(NamedTuple):
    """One tensor of a checkpoint, and where it lives in our tree."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None  # row of our array, which stacks the layers
    ours: tuple[int, ...]  # shape there, without the layer axis
    inputs: int = 0  # how many of these axes are the columns of torch's (out, in) matrix; 0: stored as ours

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """An array in our layout, whole or a part, seen in theirs; a view where `ours` is contiguous."""
        columns = int(np.prod(ours.shape[: self.inputs]))
        return ours.reshape(columns, -1).T if self.inputs else ours

    def load(self, theirs: np.ndarray) -> np.ndarray:
        """Their whole array in our layout; a view where possible."""
        return (theirs.T if self.inputs else theirs).reshape(self.ours)

    def stored(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Where in their array the part `index` of ours lies.

        Raises:
          ValueError: the part is not one block there, as half of the width of several heads.
        """
        if not self.inputs:
            return tuple(slice(*part.indices(size)) for part, size in zip(index, self.ours, strict=True))
        return _block(index[self.inputs :], self.ours[self.inputs :]), _block(
            index[: self.inputs], self.ours[: self.inputs]
        )


def _block(index: tuple[slice, ...], sizes: tuple[int, ...]) -> slice:
    """A part of several axes as a slice of these axes merged into one."""
    inner = int(np.prod(sizes[1:]))
    if any(part.indices(size) != (0, size, 1) for part, size in zip(index[1:], sizes[1:], strict=True)):
        raise ValueError(f"{index} of axes {sizes} is not one block of them merged")
    start, stop, _ = index[0].indices(sizes[0])
    return slice(start * inner, stop * inner, 1)


def tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor of a checkpoint of this shape, in its order."""
    table = [_plain("model.embed_tokens.weight", (config.V, config.D), ("embedding",))]
    table += [tensor for layer in range(config.L) for tensor in _layer(config, layer)]
    table.append(_plain("model.norm.weight", (config.D,), ("final_norm", "scale")))
    if not config.tied_embedding:
        table.append(_matrix("lm_head.weight", ("head",), (config.D,), (config.V,)))
    return table


def shapes(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of each of our arrays, by its path in the tree; layers are stacked along the first axis."""
    return {t.path: t.ours if t.layer is None else (config.L, *t.ours) for t in tensors(config)}


def _layer(config: ModelConfig, layer: int) -> Iterable[Tensor]:
    D, N, K, H, F = config.D, config.N, config.K, config.H, config.F
    prefix = f"model.layers.{layer}."
    for letter, heads in ("q", N), ("k", K), ("v", K):
        name = f"{prefix}self_attn.{letter}_proj.weight"
        yield _matrix(name, ("layers", "attention", letter), (D,), (heads, H), layer)
    yield _matrix(f"{prefix}self_attn.o_proj.weight", ("layers", "attention", "o"), (N, H), (D,), layer)
    for part, into, out in ("gate", D, F), ("up", D, F), ("down", F, D):
        yield _matrix(f"{prefix}mlp.{part}_proj.weight", ("layers", "mlp", part), (into,), (out,), layer)
    # The trap: Llama calls the norm before the MLP what Gemma2 calls the norm after attention.
    norms = {"attention_norm": "input", "mlp_norm": "post_attention"}
    if config.post_norms:
        norms["mlp_norm"] = "pre_feedforward"
        norms |= {"attention_post_norm": "post_attention", "mlp_post_norm": "post_feedforward"}
    for ours, theirs in norms.items():
        yield _plain(f"{prefix}{theirs}_layernorm.weight", (D,), ("layers", ours, "scale"), layer)


def _plain(name, shape, path, layer=None) -> Tensor:
    return Tensor(name, shape, path, layer, shape)


def _matrix(name, path, inputs: tuple, outputs: tuple, layer=None) -> Tensor:
    shape = int(np.prod(outputs)), int(np.prod(inputs))
    return Tensor(name, shape, path, layer, inputs + outputs, len(inputs))


def from_hf_state(state: Mapping[str, np.ndarray], config: ModelConfig, dtype="float32") -> dict:
    """Our parameters, as NumPy arrays of `dtype`, from a checkpoint's tensors by name.

    Raises:
      UserError: a tensor is missing, unknown, or of another shape than `config` asks.
    """
    check({name: tuple(array.shape) for name, array in state.items()}, config)
    params = {path: np.empty(shape, dtype) for path, shape in shapes(config).items()}
    for tensor in tensors(config):
        row = ... if tensor.layer is None else tensor.layer
        params[tensor.path][row] = tensor.load(np.asarray(state[tensor.name]))
    return unflatten_dict(params)


def to_hf_state(params: Mapping, config: ModelConfig) -> dict[str, np.ndarray]:
    """A checkpoint's tensors by name, from our parameters; in their dtype. The tied head is left out, as there."""
    leaves = {path: np.asarray(x) for path, x in flatten_dict(params).items()}
    row = lambda tensor: ... if tensor.layer is None else tensor.layer
    return {t.name: np.ascontiguousarray(t.theirs(leaves[t.path][row(t)])) for t in tensors(config)}


def check(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Refuses a checkpoint whose tensors are not those of `config`.

    Raises:
      UserError: the first missing or unknown names and their number, or the first wrong shape.
    """
    wanted = {tensor.name: tensor.shape for tensor in tensors(config)}
    stored = {name for name in shapes if not name.endswith(DERIVED)}
    if config.tied_embedding:
        stored.discard("lm_head.weight")  # some exports write the embedding a second time
    for what, names in ("misses", sorted(wanted.keys() - stored)), ("has unknown", sorted(stored - wanted.keys())):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"checkpoint {what} {', '.join(names[:3])}{more}; does its config.json belong to it?")
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            raise UserError(f"checkpoint: {name} has shape {tuple(shapes[name])}, and config.json asks for {shape}")


def from_hf_config(config: Mapping) -> ModelConfig:
    """The shape that a `config.json` of a Llama or Gemma2 model describes.

    Keys that a file leaves out have the defaults of `transformers`. Both spellings of rotary settings are read:
    `rope_theta` with `rope_scaling`, and `rope_parameters` of transformers 5.

    Raises:
      UserError: another family, or a setting that the decoder does not have; the message names it.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"config.json: model_type {family!r} is not supported (there are: {', '.join(FAMILIES)})")
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention", "quantization_config"):
        if config.get(key):
            raise UserError(f"config.json: {key}={config[key]!r} is not supported; unset is")
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if missing := [key for key in required if config.get(key) is None]:
        raise UserError(f"config.json lacks {', '.join(missing)}")
    V, D, L, N, F = (config[key] for key in required)
    shape = dict(V=V, D=D, L=L, N=N, F=F, norm_eps=config.get("rms_norm_eps", 1e-6))
    return ModelConfig(**shape, **_rope(config), **(_llama(config) if family == "llama" else _gemma2(config)))


def to_hf_config(config: ModelConfig) -> dict:
    """What `config.json` says of a model of this shape, which `from_hf_config` reads back to the same shape.

    The context that it states is that of the publishers' models, or the stretched one; nothing here depends on it. The
    rotary settings are in the older of the two spellings, which all versions of `transformers` read.

    Raises:
      UserError: the model is a mixture that neither family has.
    """
    scaling, windows = config.rope_scaling, config.windows * (config.L // len(config.windows))
    out = dict(
        architectures=["Gemma2ForCausalLM" if config.post_norms else "LlamaForCausalLM"],
        model_type="gemma2" if config.post_norms else "llama",
        **{key: getattr(config, letter) for key, letter in SIZES.items()},
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=8192,
        tie_word_embeddings=config.tied_embedding,
    )
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[config.activation]
    out |= dict(hidden_activation=activation) if config.post_norms else dict(hidden_act=activation)
    if scaling:
        out["rope_scaling"] = dict(
            rope_type="llama3",
            factor=scaling.factor,
            low_freq_factor=scaling.low_freq_factor,
            high_freq_factor=scaling.high_freq_factor,
            original_max_position_embeddings=scaling.original_context,
        )
        out["max_position_embeddings"] = int(scaling.factor * scaling.original_context)
    if config.post_norms:
        whole = round(config.attention_scale**-2)  # as published, where rounding is all that keeps it from that
        out |= dict(
            query_pre_attn_scalar=whole if whole**-0.5 == config.attention_scale else config.attention_scale**-2,
            attn_logit_softcapping=config.attention_softcap,
            final_logit_softcapping=config.final_softcap,
            sliding_window=next((window for window in windows if window), 4096),
            layer_types=["sliding_attention" if window else "full_attention" for window in windows],
        )
    back = from_hf_config(out)
    if dataclasses.replace(back, windows=windows) != dataclasses.replace(config, windows=windows) or (
        back.windows * (config.L // len(back.windows)) != windows
    ):
        raise UserError(f"this model is neither a Llama nor a Gemma2 and has no config.json: {config}")
    return out


def _llama(config: Mapping) -> dict:
    N = config["num_attention_heads"]
    return dict(
        K=config.get("num_key_value_heads") or N,
        H=config.get("head_dim") or config["hidden_size"] // N,
        activation=_activation(config.get("hidden_act", "silu")),
        tied_embedding=config.get("tie_word_embeddings", False),
    )


def _gemma2(config: Mapping) -> dict:
    scale = config.get("query_pre_attn_scalar", 256) ** -0.5
    H = config.get("head_dim", 256)
    return dict(
        K=config.get("num_key_value_heads", 4),
        H=H,
        norm_offset=1.0,
        post_norms=True,
        activation=_activation(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        query_scale=None if scale == H**-0.5 else scale,
        attention_softcap=config.get("attn_logit_softcapping", 50.0),
        final_softcap=config.get("final_logit_softcapping", 30.0),
        windows=_windows(config),
        tied_embedding=config.get("tie_word_embeddings", True),
        scaled_embedding=True,
    )


def _windows(config: Mapping) -> tuple[int | None, ...]:
    """The shortest pattern whose repetition gives the window of every layer."""
    local, L = config.get("sliding_window", 4096), config["num_hidden_layers"]
    kinds = config.get("layer_types") or ["full_attention" if i % 2 else "sliding_attention" for i in range(L)]
    if len(kinds) != L or set(kinds) - {"sliding_attention", "full_attention"}:
        raise UserError(
            f"config.json: layer_types must name sliding_attention or full_attention for each of {L} layers"
        )
    windows = tuple(local if kind == "sliding_attention" else None for kind in kinds)
    return next(windows[:g] for g in range(1, L + 1) if L % g == 0 and windows == windows[:g] * (L // g))


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: activation {name!r} is not supported (there are: {', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _rope(config: Mapping) -> dict:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"config.json: rotary positions {dict(rope)} are not supported (rope_type default or llama3 is)"
        )
    if kind == "default":
        return dict(rope_theta=theta)
    try:
        values = [rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor")]
    except KeyError as error:
        raise UserError(f"config.json: rope_type llama3 lacks {error.args[0]}") from error
    context = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if context is None:
        raise UserError("config.json: rope_type llama3 lacks original_max_position_embeddings")
    return dict(rope_theta=theta, rope_scaling=RopeScaling(*values, context))
