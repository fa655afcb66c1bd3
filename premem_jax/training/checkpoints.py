"""Checkpoints of the train state through Orbax: written in the background, restored onto any mesh, checked."""

import logging
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import Path

from premem_jax import processes, sharding, storage

log = logging.getLogger(__name__)


def checksums(tree):
    """A number for each array that any changed bit of it changes, whatever the mesh: a sum modulo 2^32.

    Each element's bits count times an odd number that is made of its place. The sum of one shard needs no other, so
    no array is gathered or copied.
    """
    return jax.tree.map(_checksum, tree)


def _checksum(x: jax.Array) -> jax.Array:
    bits = x.astype(jnp.uint32) if x.dtype.itemsize < 4 else jax.lax.bitcast_convert_type(x, jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = (place * np.uint32(2654435761)) | np.uint32(1)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def finished(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in `folder`; in a bucket one has its name while it is being written."""
    return ocp.utils.checkpoint_steps(folder) if folder.exists() else []


class Checkpoints:
    """The checkpoints of one run, `folder/STEP`, of which the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int):
        self._folder, self._keep = storage.path(folder), keep
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._checksums = None

    def restore(self, mesh, abstract_state) -> dict | None:
        """The newest whole train state on `mesh`, or None. A damaged one is set aside for the one before."""
        state = sharding.abstract(mesh, abstract_state)
        number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
        wanted = ocp.args.StandardRestore({"state": state, "checksums": jax.tree.map(lambda _: number, state)})
        steps = sorted(processes.once(lambda: list(self._manager.all_steps())), reverse=True)
        for place, step in enumerate(steps):
            found, why = None, "its checksum is another"
            try:
                found = self._manager.restore(step, args=wanted)
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                why = brief(error)
            if processes.all_agree(found is not None) and self._whole(found):
                for old in steps[place + self._keep :]:  # a kill came between a save and what it makes needless
                    self._manager.delete(old)
                return found["state"]
            del found
            aside = self._set_aside(step)
            rest = self._manager.latest_step()
            then = "starting over" if rest is None else f"trying checkpoint {rest}"
            log.warning("checkpoint %d cannot be read (%s); moved to %s, %s", step, why, aside, then)
        return None

    def save(self, step: int, state: dict) -> None:
        """Starts writing `state`; returns when the arrays are copied, so that they may be donated."""
        if self._manager.latest_step() != step:
            contents = {"state": state, "checksums": self._sums(state)}
            self._manager.save(step, args=ocp.args.StandardSave(contents))

    def wait(self) -> None:
        """Returns when everything started is on disk; raises what went wrong."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()

    def _sums(self, state: dict):
        if self._checksums is None:
            mesh = jax.tree.leaves(state)[0].sharding.mesh
            self._checksums = jax.jit(checksums, out_shardings=sharding.replicated(mesh))
        return self._checksums(state)

    def _whole(self, found: dict) -> bool:
        same = jax.tree.map(lambda a, b: int(a) == int(b), self._sums(found["state"]), found["checksums"])
        return all(jax.tree.leaves(same))

    def _set_aside(self, step: int) -> str:
        def move():
            folder = self._folder.with_name("unreadable")
            aside = next(path for n in count() if not (path := folder / f"checkpoint-{step}-{n}").exists())
            storage.move(self._folder / str(step), aside)
            return str(aside)

        aside = processes.once(move)
        self._manager.reload()
        return aside


def brief(error: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
