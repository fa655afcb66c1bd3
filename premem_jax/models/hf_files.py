"""Hugging Face folders: read onto a mesh and written from one, tensor by tensor."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open

from premem_jax import sharding, strict_json
from premem_jax.errors import UserError
from premem_jax.models import adapters, hf, peft
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.hf_config import from_hf_config
from premem_jax.running import atomic, progress, storage

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # safetensors' names
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
COMPANIONS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")
PIECE_BYTES = 2**23
SHARD_BYTES = 5 * 10**9


class Checkpoint:
    """A folder with `config.json` and safetensors. Every header has been checked; no array has been read.

    An adapter folder of `peft` stands for its base model with the adapter merged into it. The adapter has been read.

    Attributes:
      folder: its path; of an adapter, that of its base.
      adapter: the adapter that is merged into the weights, or None.
      files: the files that the weights are read from.
      description: the content of config.json.
      config: the shape that this describes.
      eos_ids: stop markers of config.json and generation_config.json, sorted.
    """

    def __init__(self, folder: str | Path):
        """Reads config.json, the index and the headers.

        Raises:
          UserError: no such folder on a disk, a config.json that is missing or of another family, a pickled checkpoint,
            a missing, truncated or corrupt shard, or tensors that do not fit config.json.
        """
        if storage.in_bucket(folder):
            raise UserError(f"model.path={folder}: weights are read from a disk; gcloud storage cp -r {folder} DIR")
        self.folder = folder = Path(os.path.expanduser(folder))
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UserError(f"model.path={folder} {what}; give the folder that holds config.json and *.safetensors")
        self.adapter = None
        if any((folder / name).exists() for name in (peft.CONFIG, peft.WEIGHTS, peft.PICKLED)):
            self.adapter = peft.Adapter(folder)
            self.folder = folder = self.adapter.base
        self.description = _json(folder / CONFIG)
        self.files, placed = _shards(folder)
        self._file_of, dtypes, shapes = {}, {}, {}
        for file in self.files:
            for name, dtype, shape in _header(file):
                if name in self._file_of:
                    raise UserError(f"{folder}: {name} is in {self._file_of[name].name} and again in {file.name}")
                if placed and placed.get(name) != file.name:
                    where = placed.get(name, "no file")
                    raise UserError(f"{folder}: {name} is in {file.name}, and {INDEX} says {where}")
                self._file_of[name], dtypes[name], shapes[name] = file, dtype, shape
        try:
            self.config = from_hf_config(self.description)
            hf.check(shapes, self.config)
            self.eos_ids = _markers(folder, self.description, self.config.V)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        for tensor in hf.tensors(self.config):
            if dtypes[tensor.name] not in DTYPES.values():
                raise UserError(
                    f"{folder}: {tensor.name} is stored as {dtypes[tensor.name]}; there is {', '.join(DTYPES.values())}"
                )

        if self.config.tied_embedding and HEAD in shapes:
            self._check_tied(dtypes, shapes)
        if self.adapter:
            self.adapter.check(self.config)
            self.files += self.adapter.files

    def _check_tied(self, dtypes: Mapping[str, str], shapes: Mapping[str, tuple]) -> None:
        """Refuses a tied model with a head that differs: transformers 4 follows the config, 5 the head."""
        same = dtypes[HEAD] == dtypes[EMBEDDING] and shapes[HEAD] == shapes[EMBEDDING]
        for piece in _pieces(0, shapes[EMBEDDING][0], shapes[EMBEDDING]) if same else ():
            raw = [self._stored(name, (piece, slice(None))).tobytes() for name in (EMBEDDING, HEAD)]
            if not (same := raw[0] == raw[1]):
                break
        if not same:
            raise UserError(
                f"{self.folder}: config.json says tie_word_embeddings=true, and the stored {HEAD} is not the "
                "embedding; set it to false where the head was trained, or remove the head where it was not"
            )

    def headers(self) -> list[tuple[str, int, str]]:
        """Name, size and SHA-256 of the header of each file; no array is read."""
        found = []
        for file in self.files:
            with open(file, "rb") as stream:
                size = stream.read(8)  # safetensors: the length of the header, then the header; JSON is read whole
                header = stream.read(-1 if file.suffix == ".json" else int.from_bytes(size, "little"))
            found.append((file.name, os.stat(file).st_size, hashlib.sha256(size + header).hexdigest()))
        return found

    def load(self, mesh: Mesh, dtype="float32") -> dict:
        """Loads the parameters in `dtype`, sharded over `mesh`.

        Each process reads only the parts of its own devices, one tensor at a time. Beside the parameters, the host
        needs one tensor in `dtype` and a piece of 8 MiB of the file; the devices hold one layer twice.
        """
        stacked = {path: shape for path, shape in hf.shapes(self.config).items() if path[0] == "layers"}
        layout = {
            path: NamedSharding(mesh, sharding.spec("/".join(path), shape, mesh))
            for path, shape in hf.shapes(self.config).items()
        }
        of_layers = {path: layout[path] for path in stacked}
        of_one = {path: NamedSharding(mesh, P(*where.spec[1:])) for path, where in of_layers.items()}
        params = jax.jit(
            lambda: {path: jnp.zeros(shape, dtype) for path, shape in stacked.items()}, out_shardings=of_layers
        )()
        put = jax.jit(_put, donate_argnums=0, out_shardings=of_layers)
        table = hf.tensors(self.config)
        with progress.bar(len(table), f"reading {self.folder.name}", "tensor") as bar:
            for layer, tensors in itertools.groupby(table, lambda tensor: tensor.layer):
                wanted = layout if layer is None else of_one
                arrays = {}
                for tensor in tensors:
                    # Without this, tensors would pile up on the host if the device is slower than the disk.
                    arrays[tensor.path] = jax.block_until_ready(self._array(tensor, wanted[tensor.path], dtype))
                    bar.update()
                if layer is None:
                    params |= arrays
                else:
                    stacks = put({path: params.pop(path) for path in stacked}, arrays, layer)
                    params |= jax.block_until_ready(stacks)
        return unflatten_dict(params)

    def companions(self) -> dict[str, bytes]:
        """Files of the tokenizer and of the generation config beside the weights, by name."""
        found = (path for pattern in COMPANIONS for path in sorted(self.folder.glob(pattern)) if path.is_file())
        return {path.name: path.read_bytes() for path in found}

    def _array(self, tensor: hf.Tensor, where: NamedSharding, dtype) -> jax.Array:
        parts: dict[tuple, np.ndarray] = {}

        def part(index):
            key = tuple((s.start, s.stop) for s in index)  # devices that hold the same part share what was read
            if key not in parts:
                parts[key] = self._read(tensor, index, dtype)
            return parts[key]

        return jax.make_array_from_callback(tensor.ours, where, part, dtype=jnp.dtype(dtype))

    def _read(self, tensor: hf.Tensor, index: tuple[slice, ...], dtype) -> np.ndarray:
        """A part of our array. Each piece is mapped separately, so that only one counts as memory at a time."""
        rows, *columns = tensor.stored(index)
        out = np.empty([len(range(*s.indices(n))) for s, n in zip(index, tensor.ours, strict=True)], jnp.dtype(dtype))
        theirs = tensor.theirs(out)
        for piece in _pieces(rows.start, rows.stop, tensor.shape):
            part = self._stored(tensor.name, (piece, *columns))
            if self.adapter and columns:
                part = part.astype(np.float32) + self.adapter.added(tensor.name, piece, *columns)
            theirs[piece.start - rows.start : piece.stop - rows.start] = part
        return out

    def _stored(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor as stored; a view of the mapped file if possible."""
        with safe_open(self._file_of[name], framework="numpy") as shard:
            return shard.get_slice(name)[part]


def _pieces(start: int, stop: int, shape: tuple[int, ...]) -> Iterable[slice]:
    """Row ranges from `start` to `stop` of an array of this shape, a few MB each."""
    step = max(1, PIECE_BYTES // (4 * int(np.prod(shape[1:]))))
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


def _put(stacks: dict, arrays: dict, layer) -> dict:
    """Writes one layer into the stack of all layers."""
    into = lambda stack, one: jax.lax.dynamic_update_index_in_dim(stack, one, layer, 0)
    return {path: into(stack, arrays[path]) for path, stack in stacks.items()}


# ---- What a folder must have ----------------------------------------------------------------------------------------


def _json(path: Path) -> dict:
    try:
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path}: cannot be read ({why}); it is part of every Hugging Face checkpoint") from error
    read = strict_json.loads(data, str(path))
    if not isinstance(read, dict):
        raise UserError(f"{path}: JSON, but no object")
    return read


def _markers(folder: Path, description: Mapping, V: int) -> tuple[int, ...]:
    """Stop markers of the two configs, each a number, a list of numbers, or null."""
    described = {CONFIG: description}
    if (folder / GENERATION).exists():
        described[GENERATION] = _json(folder / GENERATION)
    found = set()
    for name, said in described.items():
        stated = said.get("eos_token_id")
        ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if any(type(i) is not int or not 0 <= i < V for i in ids):
            raise UserError(f"{name}: eos_token_id={repr(stated)[:80]} must be token ids from 0 to {V - 1}")
        found.update(ids)
    return tuple(sorted(found))


def _shards(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, sorted by name, and the file of each tensor according to the index."""
    index, found = folder / INDEX, sorted(folder.glob("*.safetensors"))
    if index.exists():
        placed = _json(index).get("weight_map")
        if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
            raise UserError(f"{index}: weight_map does not say which tensor is in which file")
        names = sorted(set(placed.values()))
        if strange := [name for name in names if Path(name).name != name or "\0" in name]:
            raise UserError(f"{index}: {strange[0]!r} is not the name of a file beside it")
        if SINGLE not in names and (folder / SINGLE).exists():
            raise UserError(f"{folder}: there is {SINGLE}, and a {INDEX} of other files; remove what is not wanted")
        if missing := [name for name in names if not (folder / name).is_file()]:
            shown = ", ".join(missing[:3])
            raise UserError(f"{folder}: {len(missing)} of {len(names)} shards named in {INDEX} are missing: {shown}")
        return [folder / name for name in names], placed
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if len(found) == 1:
        return found, {}
    if found:
        raise UserError(f"{folder}: {len(found)} safetensors files, but no {INDEX} that says which belong together")
    if pickled := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise UserError(
            f"{folder}: {pickled[0]} is a pickle, which can run code when it is loaded, and is not read here; where "
            "you trust it, convert it with save_pretrained(..., safe_serialization=True) of transformers"
        )
    raise UserError(f"{folder}: no {SINGLE} and no {INDEX}")


def _header(file: Path) -> Iterable[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor of a shard; the library checks the offsets against the file size."""
    try:
        with safe_open(file, framework="numpy") as shard:
            stored = {name: shard.get_slice(name) for name in shard.offset_keys()}
            return [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in stored.items()]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from error


# ---- Export ---------------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    params: Mapping,
    config: ModelConfig,
    mesh: Mesh,
    *,
    description: Mapping,
    files: Mapping[str, bytes],
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads. It appears only once it is complete.

    Adapters are merged into the weights.

    All processes must call it; process 0 writes. It holds one layer, or one other tensor, at a time, because the
    tensors of a shard are written one by one.

    Args:
      params: sharded on `mesh`; written in `dtype`.
      description: content of config.json, without the dtype.
      files: other files to write, by name.
      shard_bytes: largest size of a shard; a larger tensor has its own.

    Raises:
      UserError: `folder` exists, or `dtype` is not in `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UserError(f"checkpoint.export_dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    if (folder / CONFIG if storage.in_bucket(folder) else folder).exists():
        raise UserError(f"{folder} exists already; move it away, or choose another folder")
    leaves, table, size = flatten_dict(params), hf.tensors(config), jnp.dtype(dtype).itemsize
    shards = _divide(table, size, shard_bytes)

    def here(tree, i):
        own = {path: x if i is None else x[i] for path, x in tree.items()}
        return jax.tree.map(lambda x: x.astype(dtype), flatten_dict(adapters.merged(config.lora, unflatten_dict(own))))

    take = jax.jit(here, out_shardings=sharding.replicated(mesh))
    beside = lambda path: [(*path[:-1], f"{path[-1]}{side}") for side in ("", adapters.A, adapters.B)]

    def arrays(tensors, bar):
        for layer, group in itertools.groupby(tensors, lambda tensor: tensor.layer):
            group = list(group)
            wanted = {path: leaves[path] for t in group for path in beside(t.path) if path in leaves}
            taken = take(wanted, None if layer is None else np.int32(layer))
            for tensor in group:
                yield tensor.theirs(np.asarray(taken.pop(tensor.path)))
                bar.update()

    with progress.bar(len(table), f"writing {folder.name}", "tensor") as bar:
        if jax.process_index() > 0:  # computes what the first process writes
            for tensors in shards.values():
                for _ in arrays(tensors, bar):
                    pass
            return
        with atomic.whole_folder(folder) as unfinished:
            for name, tensors in shards.items():
                _write_shard(unfinished / name, tensors, arrays(tensors, bar), dtype)
            if len(shards) > 1:
                (unfinished / INDEX).write_text(_index(shards, size))
            for name, data in files.items():
                (unfinished / name).write_bytes(data)
            # Read by all versions of transformers, of which the newer write `dtype`.
            said = {key: value for key, value in description.items() if key != "dtype"} | {"torch_dtype": dtype}
            (unfinished / CONFIG).write_text(json.dumps(said, indent=2) + "\n")


def _divide(table: list[hf.Tensor], size: int, limit: int) -> dict[str, list[hf.Tensor]]:
    """Divides tensors, in order, into files of at most `limit` bytes; returns them by file name."""
    shards, room = [], 0
    for tensor in table:
        need = size * int(np.prod(tensor.shape))
        if not shards or need > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= need
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": tensors for i, tensors in enumerate(shards, start=1)}


def _index(shards: Mapping[str, list[hf.Tensor]], size: int) -> str:
    """The index: the file of each tensor."""
    placed = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    total = size * sum(int(np.prod(tensor.shape)) for tensors in shards.values() for tensor in tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2) + "\n"


def _write_shard(file: Path, tensors: list[hf.Tensor], arrays: Iterable[np.ndarray], dtype: str) -> None:
    """A safetensors file: length of the header (8 bytes), the header as JSON, the arrays.

    Format: https://github.com/huggingface/safetensors. The library's own writer needs all arrays of a file at once.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        start, end = end, end + jnp.dtype(dtype).itemsize * int(np.prod(tensor.shape))
        header[tensor.name] = dict(dtype=DTYPES[dtype], shape=tensor.shape, data_offsets=(start, end))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            for piece in _pieces(0, len(array), array.shape):  # a transposed array is put in order piece by piece
                out.write(np.ascontiguousarray(array[piece]).reshape(-1).view(np.uint8))
