"""The mesh, and one ordered table of rules for the sharding of every array."""

import re
from collections.abc import Mapping
from functools import partial, reduce

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from premem_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# First match wins. A leading L is the layer axis, which is scanned and never sharded; unstacked layers lack it.
RULES = (
    (r"embedding$", ("tensor", "fsdp")),  # V D
    (r"head$", ("fsdp", "tensor")),  # D V
    (r"attention/[qkv]$", (None, "fsdp", "tensor", None)),  # L D N H
    (r"attention/[qkv]_bias$", (None, "tensor", None)),  # L N H
    (r"attention/o$", (None, "tensor", None, "fsdp")),  # L N H D
    (r"mlp/(gate|up)$", (None, "fsdp", "tensor")),  # L D F
    (r"mlp/down$", (None, "tensor", "fsdp")),  # L F D
    (r"scale$", ()),  # L D, or D
    (r"_[AB]$", ()),  # adapters: each device has all, as they are small
    (r"(count|step|good)$", ()),  # scalars of the train state
)
BATCH = P(("data", "fsdp"))


def make_mesh(axes: Mapping[str, int], devices=None) -> Mesh:
    """A `(data, fsdp, tensor)` mesh over `devices` (default: all); one axis may be -1 and takes the rest.

    TPU slices are split along `data` first, so that only the sum of gradients crosses the network between slices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `data` is not a multiple of the number of
        slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [axes[name] for name in AXES]
    asked = dict(zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh {asked}: sizes are positive, and at most one may be -1 (the rest)")
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh {asked} does not divide {len(devices)} device(s): the sizes must multiply to that number"
        )
    return Mesh(_arranged(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(devices, sizes: list[int]) -> np.ndarray:
    """Devices ordered by their network: slice by slice along `data`, by the torus within a slice."""
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    data, *rest = sizes
    if data % len(slices):
        raise UserError(f"mesh: data={data} must be a multiple of the {len(slices)} slices; set --config.mesh.data")
    within = (data // len(slices), *rest)
    arrange = partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)
    return np.concatenate([arrange(within, part) for _, part in sorted(slices.items())])


def parts(mesh: Mesh) -> int:
    """Number of batch shards: the size of `data` times `fsdp`."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def decode_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The same devices without an `fsdp` axis, so that sampling gathers no weights.

    `tensor` devices share the weights (default: as in training); the others hold copies, for other batch shards.

    Raises:
      UserError: `tensor` does not divide the number of devices.
    """
    tensor = tensor or mesh.shape["tensor"]
    if mesh.size % tensor:
        raise UserError(f"mesh.decode_tensor={tensor} does not divide {mesh.size} device(s)")
    return Mesh(mesh.devices.reshape(-1, 1, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of one array, by the first rule that matches `path`.

    An axis that does not divide its dimension is omitted. Extra leading dimensions are the members of a stack, which
    are not sharded.

    Raises:
      KeyError: no rule matches.
    """
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), None)
    if axes is None:
        raise KeyError(f"no sharding rule matches {path!r}")
    members = (None,) * (len(shape) - len(axes) if axes else 0)
    axes = members + axes[max(0, len(axes) - len(shape)) :]
    keep = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=False)]
    return P(*keep)


def shardings(mesh: Mesh, tree):
    """`NamedSharding`s for a tree of arrays or `ShapeDtypeStruct`s: parameters, optimizer state, train state."""

    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    leaf = lambda path, x: NamedSharding(mesh, spec(name(path), x.shape, mesh))
    return jax.tree_util.tree_map_with_path(leaf, tree)


def gathered(mesh: Mesh | None, tree):
    """Gathers parameters along `fsdp` before they are multiplied with activations.

    By default, XLA's partitioner for TPUs multiplies by one shard of a weight while it fetches the next, and adds as
    many partial gradients: twice the cycles of an update of Llama3-8B on 16 v5e.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    whole = lambda layout: NamedSharding(mesh, P(*(axis if axis != "fsdp" else None for axis in layout.spec)))
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(whole, shardings(mesh, tree)))


def abstract(mesh: Mesh, tree):
    """The shapes of a tree, with shardings by the rules."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(place, tree, shardings(mesh, tree))


def abstract_batch(mesh: Mesh, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """The shape of an array from `put_batch`, with its sharding."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def places_here(mesh: Mesh, batch: int) -> np.ndarray:
    """Indices of a batch of `batch` on devices of this process, ascending; with one process, all."""
    parts = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[part] for (part,) in parts]))


def put_batch(mesh: Mesh, tree, *, here: bool = False, axis: int = 0):
    """Puts host arrays on the mesh, their batch axis `axis` sharded over `data` and `fsdp`.

    They are the whole batch, or with `here` the `places_here` alone.
    """
    layout = NamedSharding(mesh, P(*[None] * axis, *BATCH))
    if not mesh.is_multi_process:
        return jax.device_put(tree, layout)

    def put(x):
        size = x.shape[axis] * parts(mesh) // len(places_here(mesh, parts(mesh))) if here else x.shape[axis]
        places = places_here(mesh, size) if here else np.arange(size)
        part = lambda index: x.take(np.searchsorted(places, np.arange(size)[index[axis]]), axis)
        return jax.make_array_from_callback((*x.shape[:axis], size, *x.shape[axis + 1 :]), layout, part)

    return jax.tree.map(put, tree)


def random_key(mesh: Mesh, seed: int, *fold: int) -> jax.Array:
    """The key of a seed with some numbers folded in, replicated."""
    numbers = [np.uint32(number) for number in (seed, *fold)]
    return jax.jit(_folded, out_shardings=replicated(mesh))(*numbers)


def _folded(seed, *fold):
    return reduce(jax.random.fold_in, fold, jax.random.key(seed))


def put_replicated(mesh: Mesh, tree):
    """Puts host arrays, the same in every process, on the mesh, replicated."""
    put = lambda x: jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])
    return jax.tree.map(lambda x: put(np.asarray(x)), tree)
