"""Updates of a preference run split by source: what each source does to the probed responses, beside what happens.

Every `influence.every` updates, and after the first, the next update is computed by its sources before it is made.
`influence/step-N.json` has the effects on each type of response that the run's probes follow.
"""

from collections.abc import Collection, Mapping

import numpy as np
from etils.epath import Path

from premem_jax import sharding
from premem_jax.data.pipeline import Tokenized
from premem_jax.data.response_types import MADE
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.probe import answered
from premem_jax.evaluators.run import Run
from premem_jax.experiments.finetune import Ready
from premem_jax.running import processes, sealed
from premem_jax.training import influence
from premem_jax.training.losses import needed
from premem_jax.training.phase import Phase
from premem_jax.training.step import weights

FOLDER = "influence"


class Decomposition:
    """Splits updates of the phases of one run in `folder`."""

    def __init__(self, config, folder: Path, made: Ready, run: Run):
        self._folder, self._run, self._settings = folder, run, config.influence
        self._optimizer = config.optimizer.to_dict()
        self._micro_batches = config.train.micro_batches
        self._model = influence.with_forward_mode(made.model, made.mesh)
        followed = [options.response for options in config.evals.values() if options.type == "probe"]
        split = Split("train", made.splits["train"], made.grader)
        prompts = config.influence.prompts
        self._seen: dict[str, Tokenized] = {}
        if config.influence.every:
            kinds = dict.fromkeys(followed or MADE)
            self._seen = {kind: answered(split, run, kind, prompts).data for kind in kinds}
        self._effects = run.program(influence.effects, self._model)
        self._kernel = run.program(influence.kernel_size, self._model, draws=config.influence.draws)

    def steps(self, updates: int) -> Collection[int]:
        """Steps of a phase of so many updates before whose next update the split is made.

        The first update has learning rate 0 during a warm-up, so the second stands for it.
        """
        every = self._settings.every
        return {1, *range(every, updates, every)} if every else ()

    def write(self, since: int, phase: Phase, step: int, state: Mapping) -> None:
        """Splits the update that follows `step` of a phase that began at step `since` of the run."""
        path = self._folder / FOLDER / f"step-{since + step:08d}.json"
        whole = lambda: sealed.unless_damaged(sealed.read_json, path, self._folder, "it is made again") is not None
        if processes.once(whole):
            return
        with phase.clock("influence"):
            document = {"step": since + step, "phase": phase.name, **self._split(phase, step, state)}
        processes.once(lambda: sealed.write_json(path, document))

    def _split(self, phase: Phase, step: int, state: Mapping) -> dict:
        run, loss = self._run, phase.trainer.loss
        _, arrays = next(iter(phase.batches(step, step + 1)))
        batch = sharding.put_batch(run.mesh, needed(loss, arrays), here=True)
        params, layout = weights(state), run.layout(state["params"])
        rate = np.float32(phase.rate(step))
        responses = influence.SOURCES[: arrays["responses"].shape[1]]
        update = run.program(
            influence.next_update,
            self._model,
            loss,
            self._micro_batches,
            out_shardings=dict.fromkeys((*responses, "momentum", "decay"), layout),
            **self._optimizer,
        )
        directions = update(state, batch, rate)
        sizes = run.program(influence.norms_of_g, self._model, loss)(params, batch)
        found = {kind: self._of_type(kind, params, directions, batch, step) for kind in self._seen}
        return {"rate": float(rate), "norms_of_g": np.asarray(sizes).tolist(), "types": found}

    def _of_type(self, kind: str, params, directions, batch, step: int) -> dict:
        data, run = self._seen[kind], self._run
        size = len(data) + -len(data) % sharding.parts(run.mesh)
        ((rows, arrays),) = run.batches(data, size)
        seen = {key: arrays[key] for key in ("tokens", "weights")}
        values = {name: np.asarray(x) for name, x in self._effects(params, directions, *seen.values()).items()}
        found = {"example": data.ids[rows].tolist(), "tokens": [len(data.targets[row]) for row in rows]}
        found |= {name: x[: len(rows)].tolist() for name, x in values.items()}
        if self._settings.draws:
            key = run.key(step)
            found["norm_of_k"] = float(self._kernel(params, seen, batch, key))
        return found
