"""Names and layouts of Hugging Face tensors for all families."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from premem_jax.errors import UserError
from premem_jax.models.architecture import ModelConfig

# Constants that old exports stored beside the weights; ignored.
DERIVED = ("rotary_emb.inv_freq",)


class Tensor(NamedTuple):
    """One tensor of a checkpoint, and its place in our tree."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None  # row of our array, which stacks the layers
    ours: tuple[int, ...]  # shape there, without the layer axis
    inputs: int = 0  # how many of these axes are the columns of torch's (out, in) matrix; 0: stored as ours

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Converts an array, or a part of one, from our layout to theirs; a view if `ours` is contiguous."""
        if not self.inputs:
            return ours.reshape(-1) if len(self.shape) == 1 else ours  # a bias has one axis there
        columns = int(np.prod(ours.shape[: self.inputs]))
        return ours.reshape(columns, -1).T

    def load(self, theirs: np.ndarray) -> np.ndarray:
        """Converts their whole array to our layout; a view if possible."""
        return (theirs.T if self.inputs else theirs).reshape(self.ours)

    def stored(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Index in their array of the part `index` of ours.

        Raises:
          ValueError: the part is not contiguous there, for example half of the width of several heads.
        """
        if len(self.shape) == 1:
            return (_block(index, self.ours),)
        if not self.inputs:
            return tuple(slice(*part.indices(size)) for part, size in zip(index, self.ours, strict=True))
        return _block(index[self.inputs :], self.ours[self.inputs :]), _block(
            index[: self.inputs], self.ours[: self.inputs]
        )


def _block(index: tuple[slice, ...], sizes: tuple[int, ...]) -> slice:
    """Slice of merged axes that corresponds to one slice per axis."""
    inner = int(np.prod(sizes[1:]))
    if any(part.indices(size) != (0, size, 1) for part, size in zip(index[1:], sizes[1:], strict=True)):
        raise ValueError(f"{index} of axes {sizes} is not one block of them merged")
    start, stop, _ = index[0].indices(sizes[0])
    return slice(start * inner, stop * inner, 1)


def tensors(config: ModelConfig) -> list[Tensor]:
    """All tensors of a checkpoint of this shape, in order."""
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
    D, H = config.D, config.H
    prefix = f"model.layers.{layer}."
    for name, (inputs, outputs) in config.matrices.items():
        ours, theirs = ("attention", "self_attn") if name in "qkvo" else ("mlp", "mlp")
        path, stem = ("layers", ours, name), f"{prefix}{theirs}.{name}_proj"
        yield _matrix(f"{stem}.weight", path, inputs, outputs, layer)
        if name in config.biases:
            size = int(np.prod(outputs))
            yield Tensor(f"{stem}.bias", (size,), (*path[:-1], f"{name}_bias"), layer, outputs)
    for name in ("q_norm", "k_norm") if config.head_norms else ():
        yield _plain(f"{prefix}self_attn.{name}.weight", (H,), ("layers", "attention", name, "scale"), layer)
    # A trap: Llama's name for the norm before the MLP is Gemma2's name for the norm after attention.
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
    """Converts a checkpoint's tensors, by name, to our parameters: NumPy arrays of `dtype`.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape than in `config`.
    """
    check({name: tuple(array.shape) for name, array in state.items()}, config)
    params = {path: np.empty(shape, dtype) for path, shape in shapes(config).items()}
    for tensor in tensors(config):
        row = ... if tensor.layer is None else tensor.layer
        params[tensor.path][row] = tensor.load(np.asarray(state[tensor.name]))
    return unflatten_dict(params)


def to_hf_state(params: Mapping, config: ModelConfig) -> dict[str, np.ndarray]:
    """Converts our parameters to a checkpoint's tensors by name, in the same dtype. A tied head is omitted."""
    leaves = {path: np.asarray(x) for path, x in flatten_dict(params).items()}
    row = lambda tensor: ... if tensor.layer is None else tensor.layer
    return {t.name: np.ascontiguousarray(t.theirs(leaves[t.path][row(t)])) for t in tensors(config)}


def check(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Checks that the tensors of a checkpoint are those of `config`.

    Raises:
      UserError: names the first missing or unknown tensors and their number, or the first wrong shape.
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
