"""One training phase: from weights, batches and a loss to a train state.

A base model is one phase, a finetune is one phase, supervised finetuning followed by preference training is two. A
phase asks for the weights of the earlier one only if it has no checkpoint, so a killed run continues in its phase. One
that trains adapters always asks for them, because frozen weights are in no checkpoint.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax import sharding
from premem_jax.errors import NonFinite
from premem_jax.running import processes, progress
from premem_jax.running.programs import Clock, Profile
from premem_jax.training.checkpoints import Checkpoints
from premem_jax.training.losses import needed
from premem_jax.training.metrics import Metrics
from premem_jax.training.step import changing, weights
from premem_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

Batch = tuple[np.ndarray, dict[str, np.ndarray]]
Weights = Mapping[str, Callable[[], dict]]  # what gives the weights of a member, by its name; "": of a run alone


class NonFiniteLoss(NonFinite):
    """The loss or its gradient is not finite; the state is the one before that update."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Training of one model, or of a stack of members, in `folder`. `run` starts or continues it.

    Attributes:
      name: name in the progress bar and in messages.
      folder: place of the phase's `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      trainer: the model, its loss and its optimizer on a mesh.
      steps: number of updates.
      batches: (start, stop) → the batches of updates start to stop - 1. Each has the ids of its examples (B,), -1 for
        padding, and the arrays that the loss needs, of which this process has its own rows.
      rate: learning rate of the update after this many updates.
      save_every: updates between checkpoints; the newest `keep` are kept.
      log_every: updates between rows of metrics.
      evaluate: called with the step and the weights of each member that is still good, as functions that load them, by
        name ("" for a run trained alone); its result is added to the metrics.
      evaluation_steps: steps at which it is called; a checkpoint of the same step is started before.
      inspect: called with this phase, the step and the train state at each step of `inspected`, before the next update.
      look_back: called before anything is restored, to check the evaluations of earlier launches. Gets the kept steps,
        and a function from a step to weights as `evaluate` gets them (None if damaged).
      profile: a window of updates for JAX's profiler.
      members: names of the members, if the trainer trains a stack. Batches are then those of `data.reader.stacked`,
        `rate` gives (M,) rates, and each member has its own rows in the metrics. A member whose loss is not finite
        keeps its last good state (`good` in the train state) and is not evaluated again; the others continue.
      trackers: where metrics go beside TensorBoard, names of `training/trackers.py`.
    """

    name: str
    folder: Path
    trainer: Trainer
    steps: int
    batches: Callable[[int, int], Iterator[Batch]]
    rate: Callable[[int], float | np.ndarray]
    save_every: int
    keep: int
    log_every: int
    evaluate: Callable[[int, Weights], Mapping[str, float] | None] = lambda step, weights: None
    evaluation_steps: Collection[int] = ()
    inspect: Callable[["Phase", int, dict], None] = lambda phase, step, state: None
    inspected: Collection[int] = ()
    look_back: Callable[[list[int], Callable[[int], Weights | None]], None] = lambda kept, weights_at: None
    profile: Profile | None = None
    members: tuple[str, ...] = ()
    trackers: tuple[str, ...] = ()

    def run(self, start_from: Callable[[], dict]) -> dict:
        """The train state after the last update. `start_from` makes the initial weights if there is no checkpoint.

        Raises:
          NonFiniteLoss: after evaluating the last good state; in a stack, once no member is left.
          Stopped: the run was asked to stop; the state is saved.
        """
        with self.clock("checkpoint"):
            checkpoints = Checkpoints(self.folder / "checkpoints", keep=self.keep)
            self.look_back(checkpoints.steps(), partial(self._weights_at, checkpoints, start_from))
            state = checkpoints.restore(self.trainer.mesh, changing(self.trainer.abstract_state))
        state = self.trainer.init_state(start_from()) if state is None else self._whole(state, start_from)
        step = steps_done(state)
        if 0 < step < self.steps:
            progress.say(f"continuing {self.folder} at step {step} of {self.steps}")
        if step < self.steps or self.evaluation_steps:
            metrics = Metrics(self.folder, step, self.trackers)
            state = Loop(self, checkpoints, metrics).run(state)
            metrics.close()
        with self.clock("checkpoint"):
            checkpoints.wait()
            checkpoints.close()
        return state

    def _weights_at(self, checkpoints: Checkpoints, start_from: Callable[[], dict], step: int) -> Weights | None:
        state = checkpoints.at(step, self.trainer.mesh, changing(self.trainer.abstract_state))
        return None if state is None else self.weights_of(self._whole(state, start_from))

    def _whole(self, state: dict, start_from: Callable[[], dict]) -> dict:
        """The state of a checkpoint with the frozen weights, if there are any."""
        frozen = "frozen" in self.trainer.abstract_state
        return state | {"frozen": self.trainer.init_state(start_from())["frozen"]} if frozen else state

    def weights_of(self, state: Mapping) -> Weights:
        """What gives the weights of each member that is still good."""
        if not self.members:
            return {"": partial(weights, state)}
        good = np.asarray(state["good"])
        return {name: partial(weights, state, m) for m, name in enumerate(self.members) if good[m]}

    @property
    def clock(self) -> Clock:
        return self.trainer.clock


def steps_done(state: Mapping) -> int:
    """Number of updates of a train state; in a stack, of the members that are still good."""
    return int(np.max(state["step"]))


class Loop:
    """The training loop: dispatches an update, then reads the metrics of the previous one."""

    def __init__(self, phase: Phase, checkpoints: Checkpoints, metrics: Metrics):
        self._phase, self._checkpoints, self._metrics = phase, checkpoints, metrics
        self._pending = None  # step, values and ids of the update dispatched last
        self._lost: set[str] = set()  # members whose loss was not finite

    def run(self, state: dict) -> dict:
        """Trains `state` to the last step; evaluates and saves on the way."""
        phase, start = self._phase, steps_done(state)
        self._state, self._bar = state, progress.bar(phase.steps, phase.name, "step", initial=start)
        with phase.clock("train"), self._bar:
            try:
                if start in phase.evaluation_steps:
                    self._evaluate()
                self._inspect(start)
                steps = range(start + 1, phase.steps + 1)
                for step, (ids, arrays) in zip(steps, phase.batches(start, phase.steps), strict=True):
                    processes.poll()
                    self._update(step, ids, arrays)
                    if step % phase.save_every == 0 or step == phase.steps:
                        self._save()
                    if step in phase.evaluation_steps:
                        self._settle()
                        self._evaluate()
                    self._inspect(step)
            except processes.Stopped:
                self._save()
                self._checkpoints.wait()
                raise
            finally:
                if phase.profile:
                    phase.profile.close()
        return self._state

    def _update(self, step: int, ids: np.ndarray, arrays: dict) -> None:
        trainer, profile = self._phase.trainer, self._phase.profile
        if profile:
            profile.before(step)
        placed = sharding.put_batch(trainer.mesh, needed(trainer.loss, arrays), here=True, axis=ids.ndim - 1)
        self._state, values = trainer.program(self._state, placed, np.float32(self._phase.rate(step - 1)))
        self._settle()
        self._pending = step, values, ids

    def _settle(self) -> None:
        """Reads the metrics of the last dispatched update."""
        if self._pending is None:
            return
        phase, (step, values, ids), self._pending = self._phase, self._pending, None
        values = {key: np.asarray(value) for key, value in values.items()}
        good = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
        if not good.any():
            if phase.evaluation_steps:
                with contextlib.suppress(NonFinite):  # what went wrong first is said
                    self._evaluate()
            raise NonFiniteLoss(_not_finite(phase.name, step, values, ids))
        self._bar.update()
        self._bar.set_postfix(loss=f"{np.mean(values['loss'], where=good):.3f}", refresh=False)
        values["learning_rate"] = np.asarray(phase.rate(step - 1))
        for m, name in enumerate(phase.members):
            if not good[m] and name not in self._lost:
                self._lost.add(name)
                log.warning(
                    _not_finite(f"{phase.name}, member {name}", step, {k: x[m] for k, x in values.items()}, ids[m])
                )
        if step % phase.log_every == 0 or step == phase.steps:
            self._log(step, values)

    def _log(self, step: int, values: dict[str, np.ndarray]) -> None:
        per_second = self._bar.format_dict["rate"] or 0.0
        if not self._phase.members:
            self._metrics.write(step, {key: float(x) for key, x in values.items()}, steps_per_second=per_second)
        for m, name in enumerate(self._phase.members):
            self._metrics.write(step, {key: float(x[m]) for key, x in values.items()}, member=name)

    def _evaluate(self) -> None:
        step = steps_done(self._state)
        if found := self._phase.evaluate(step, self._phase.weights_of(self._state)):
            self._metrics.write(step, found)
            self._metrics.flush()

    def _inspect(self, step: int) -> None:
        if step in self._phase.inspected and step < self._phase.steps:
            self._settle()
            self._phase.inspect(self._phase, step, self._state)

    def _save(self) -> None:
        self._settle()
        with self._phase.clock("checkpoint"):
            self._metrics.flush()
            self._checkpoints.save(steps_done(self._state), changing(self._state))


def _not_finite(name: str, step: int, values: Mapping, ids: np.ndarray) -> str:
    named = ", ".join(str(i) for i in ids.ravel() if i >= 0)
    return (
        f"{name}, step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; the batch held examples "
        f"{named}. Lower the learning rate or look at these examples"
    )
