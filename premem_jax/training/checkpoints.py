"""Checkpoints of the train state through Orbax: written in the background, restored onto any mesh."""

import logging
import shutil
from pathlib import Path

import orbax.checkpoint as ocp

from premem_jax import sharding

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, `folder/STEP`, of which the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def restore(self, mesh, abstract_state) -> dict | None:
        """The newest readable train state on `mesh`, or None. An unreadable one is set aside for the one before."""
        shapes = sharding.abstract(mesh, abstract_state)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                aside = self._set_aside(step)
                rest = self._manager.latest_step()
                then = "starting over" if rest is None else f"trying checkpoint {rest}"
                log.warning("checkpoint %d cannot be read (%s); moved to %s, %s", step, brief(error), aside, then)
        return None

    def save(self, step: int, state: dict) -> None:
        """Starts writing `state`; returns when the arrays are copied, so that they may be donated."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Returns when everything started is on disk; raises what went wrong."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()

    def _set_aside(self, step: int) -> Path:
        folder = self._folder.with_name("unreadable")
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f"checkpoint-{step}-{len(list(folder.iterdir()))}"
        shutil.move(self._folder / str(step), aside)
        self._manager.reload()
        return aside


def brief(error: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
