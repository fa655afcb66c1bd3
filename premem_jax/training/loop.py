"""The training loop: dispatch a step, then read the numbers of the one before."""

from collections.abc import Callable, Collection, Iterator

import jax
import numpy as np

from premem_jax import processes, progress, sharding
from premem_jax.errors import UserError
from premem_jax.programs import Clock, Profile, Program
from premem_jax.training.checkpoints import Checkpoints
from premem_jax.training.metrics import Metrics


class NonFiniteLoss(UserError):
    """The loss or its gradient stopped being a number; the state is the one before that update."""


def fit(
    state: dict,
    steps: int,
    *,
    name: str,
    program: Program,
    batches: Iterator[dict],
    rate: Callable[[int], float],
    mesh: jax.sharding.Mesh,
    clock: Clock,
    checkpoints: Checkpoints,
    save_every: int,
    metrics: Metrics,
    log_every: int,
    evaluate: Callable[[int, dict], None] = lambda step, state: None,
    evaluation_steps: Collection[int] = (),
    profile: Profile | None = None,
) -> dict:
    """Trains `state` from the step it is at to `steps` and returns it; evaluates and saves on the way.

    `batches` begin at the state's step. A checkpoint is started before the evaluation of the same step.

    Raises:
      NonFiniteLoss: after evaluating the last good state.
      Stopped: somebody asked for it, and the state is saved.
    """
    start = int(state["step"])
    pending = None
    bar = progress.bar(steps, name, "step", initial=start)

    def settle():
        """Reads the numbers of the update dispatched last."""
        nonlocal pending
        if pending is None:
            return
        (step, values, ids), pending = pending, None
        values = {key: float(value) for key, value in values.items()}
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            if evaluation_steps:
                evaluate(int(state["step"]), state)
            raise _stopped(name, step, values, ids)
        bar.update()
        bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        if step % log_every == 0 or step == steps:
            per_second = bar.format_dict["rate"] or 0.0
            metrics.write(step, values | {"learning_rate": rate(step - 1)}, steps_per_second=per_second)

    def save():
        settle()
        with clock("checkpoint"):
            metrics.flush()
            checkpoints.save(int(state["step"]), state)

    with clock("train"), bar:
        try:
            if start in evaluation_steps:
                evaluate(start, state)
            for step, batch in zip(range(start + 1, steps + 1), batches, strict=True):
                processes.poll()
                if profile:
                    profile.before(step)
                arrays = {key: batch[key] for key in ("tokens", "weights")}
                arrays = sharding.put_batch(mesh, arrays, len(batch["examples"]))
                state, values = program(state, arrays, np.float32(rate(step - 1)))
                settle()
                pending = step, values, batch["examples"]
                if step % save_every == 0 or step == steps:
                    save()
                if step in evaluation_steps:
                    settle()
                    evaluate(step, state)
        except processes.Stopped:
            save()
            checkpoints.wait()
            raise
        finally:
            if profile:
                profile.close()
    return state


def _stopped(name: str, step: int, values: dict, ids: np.ndarray) -> NonFiniteLoss:
    named = ", ".join(str(i) for i in ids if i >= 0)
    return NonFiniteLoss(
        f"{name}, step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; the batch held examples "
        f"{named}. Lower the learning rate or look at these examples"
    )
