"""The weights in a checkpoint of a run, with the interface of a Hugging Face folder's `Checkpoint`."""

import json
import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils.epath import Path

from premem_jax import sharding
from premem_jax.data import tokenizer_files
from premem_jax.errors import UserError
from premem_jax.models.architecture import preset
from premem_jax.models.decoder import init
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import storage
from premem_jax.training.checkpoints import brief, checksums, finished


def checkpoint_at(path: str) -> "RunCheckpoint | Checkpoint":
    """The checkpoint of a run's folder (its newest), of `RUN/checkpoints/STEP`, or of a Hugging Face folder.

    Raises:
      UserError: the run keeps no such checkpoint, or is not of one model; or as `Checkpoint`.
    """
    if storage.in_bucket(path) or not path:
        return Checkpoint(path)  # which says why not
    place, step = storage.path(path), None
    if re.fullmatch(r"\d+", place.name) and place.parent.name == "checkpoints":
        place, step = place.parent.parent, int(place.name)
    try:
        config = json.loads((place / "config.json").read_text())
        return RunCheckpoint(place, config, step) if "experiment" in config else Checkpoint(path)
    except (OSError, ValueError, TypeError):
        return Checkpoint(path)


class RunCheckpoint:
    """Weights of one step of a run. No array has been read.

    Attributes:
      folder: the run's folder, which has its tokenizer.
      description: empty; what a Hugging Face folder's config.json says.
      config: the shape.
      eos_ids: stop markers beside the tokenizer's.
      files: the files of the checkpoint.
    """

    def __init__(self, folder: Path, config: dict, step: int | None):
        kept = sorted(finished(folder / "checkpoints"))
        if not kept or step not in (None, *kept):
            there = ", ".join(map(str, kept)) or "none"
            raise UserError(
                f"model.path={folder}: no checkpoint{'' if step is None else f' of step {step}'}; kept: {there}"
            )
        self.folder, self.step, self.description, self.eos_ids = folder, kept[-1] if step is None else step, {}, ()
        self._place = folder / "checkpoints" / str(self.step)
        self.files = [pathlib.Path(file) for file in storage.files(self._place)]
        try:
            if config.get("lora", {}).get("rank"):
                raise UserError(
                    f"{folder} is a run of adapters; export it (checkpoint.export), and evaluate that folder"
                )
            if config["model"]["path"]:
                of = Checkpoint(config["model"]["path"])
                self.config, self.eos_ids = of.config, of.eos_ids
            else:
                self.config = preset(config["model"]["preset"], V=tokenizer_files.load(folder).vocab_size)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder}/config.json is not of a run of one model ({error!r})") from error

    def headers(self) -> list[tuple[str, int]]:
        """Step, and name and size of each file."""
        return [("step", self.step), *((file.name, file.stat().st_size) for file in self.files)]

    def load(self, mesh, dtype="float32") -> dict:
        """The weights in `dtype`, sharded over `mesh`; the optimizer's moments are not read.

        Raises:
          UserError: they cannot be read, or their checksum is another.
        """
        shapes = jax.eval_shape(partial(init, self.config), jax.random.key(0))
        params = sharding.abstract(mesh, shapes)
        number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
        item = {"state": {"params": params}, "checksums": {"params": jax.tree.map(lambda _: number, shapes)}}
        wanted = ocp.checkpoint_utils.construct_restore_args(item)
        try:
            with ocp.PyTreeCheckpointer() as reader:
                asked = ocp.args.PyTreeRestore(item, restore_args=wanted, partial_restore=True)
                found = reader.restore(self._place / "default", asked)
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            raise UserError(f"{self._place} cannot be read ({brief(error)}); take another step") from error
        got = found["state"]["params"]
        sums = jax.jit(checksums, out_shardings=sharding.replicated(mesh))(got)
        if jax.tree.map(int, sums) != jax.tree.map(int, found["checksums"]["params"]):
            raise UserError(f"{self._place} is damaged: its checksum is another; take another step")
        return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree), donate_argnums=0)(got)
