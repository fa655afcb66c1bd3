"""Checkpoints of the train state through Orbax: written in the background, restored onto any mesh, checked."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import Path

from premem_jax import sharding
from premem_jax.running import processes, sealed, storage

log = logging.getLogger(__name__)


def checksums(tree):
    """Checksum of each array: a sum modulo 2^32 that changes with any bit and is the same on every mesh.

    Each element's bits are multiplied by an odd number derived from its index. Shards are summed independently, so no
    array is gathered or copied.
    """
    return jax.tree.map(_checksum, tree)


def _checksum(x: jax.Array) -> jax.Array:
    same_size = {2: jnp.uint16, 4: jnp.uint32}.get(x.dtype.itemsize)  # none for flags
    bits = (jax.lax.bitcast_convert_type(x, same_size) if same_size else x).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = (place * np.uint32(2654435761)) | np.uint32(1)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def finished(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`. In a bucket, incomplete ones have their final name already."""
    return ocp.utils.checkpoint_steps(folder) if folder.exists() else []


class Checkpoints:
    """The checkpoints of one run, `folder/STEP`; the newest `keep` are kept."""

    def __init__(self, folder: Path, *, keep: int):
        self._folder, self._keep = storage.path(folder), keep
        processes.once(self._be_a_folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._checksums = None

    def steps(self) -> list[int]:
        """The steps that are kept, ascending."""
        return sorted(processes.once(lambda: list(self._manager.all_steps())))

    def restore(self, mesh, abstract_state) -> dict | None:
        """The newest intact train state, on `mesh`, or None. A damaged one is set aside and the previous one tried."""
        steps = self.steps()[::-1]
        for place, step in enumerate(steps):
            if (state := self.at(step, mesh, abstract_state)) is not None:
                for old in steps[place + self._keep :]:  # a kill came between a save and what it makes needless
                    self._manager.delete(old)
                return state
            rest = self._manager.latest_step()
            log.warning("starting over" if rest is None else f"trying checkpoint {rest}")
        return None

    def at(self, step: int, mesh, abstract_state) -> dict | None:
        """The train state of one kept step, on `mesh`. If it is damaged, it is set aside and the result is None."""
        state = sharding.abstract(mesh, abstract_state)
        number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
        wanted = ocp.args.StandardRestore({"state": state, "checksums": jax.tree.map(lambda _: number, state)})
        found, why = None, "its checksum is another"
        try:
            found = self._manager.restore(step, args=wanted)
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            why = brief(error)
        if processes.all_agree(found is not None) and self._whole(found):
            return found["state"]
        del found
        log.warning("checkpoint %d cannot be read (%s); moved to %s", step, why, self._set_aside(step))
        return None

    def save(self, step: int, state: dict) -> None:
        """Starts writing `state`; returns once the arrays are copied and may be donated."""
        if self._manager.latest_step() != step:
            contents = {"state": state, "checksums": self._sums(state)}
            self._manager.save(step, args=ocp.args.StandardSave(contents))

    def wait(self) -> None:
        """Waits until all saves are on disk; raises their errors."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()

    def _be_a_folder(self) -> None:
        if self._folder.is_file():
            aside = sealed.set_aside(self._folder, self._folder.parent)
            log.warning("%s is a file and should be a folder; moved to %s", self._folder, aside)

    def _sums(self, state: dict):
        if self._checksums is None:
            mesh = jax.tree.leaves(state)[0].sharding.mesh
            self._checksums = jax.jit(checksums, out_shardings=sharding.replicated(mesh))
        return self._checksums(state)

    def _whole(self, found: dict) -> bool:
        same = jax.tree.map(lambda a, b: int(a) == int(b), self._sums(found["state"]), found["checksums"])
        return all(jax.tree.leaves(same))

    def _set_aside(self, step: int) -> str:
        move = lambda: str(sealed.set_aside(self._folder / str(step), self._folder.parent, f"checkpoint-{step}"))
        aside = processes.once(move)
        self._manager.reload()
        return aside


def brief(error: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
