"""One size of model on the ladder of emergence: pretrained, and each checkpoint finetuned on growing amounts of data.

The finetunes of a checkpoint (a rung) on all amounts and subsets are trained as one stack. `folder/STEP/` has the
traces of a rung and, once it is done, `rows.json`: its rows of the table that `experiments/emergence.py` reads.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis.emergence_law import Law
from premem_jax.analysis.trace import read_trace
from premem_jax.data.packing import Packing
from premem_jax.data.reader import stacked, train_batches
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.suite import Suite
from premem_jax.experiments import rung_rows
from premem_jax.experiments.pretraining import PRETRAINING, QUESTION, Ground, Rung, prepared, pretrained, weights_of
from premem_jax.running import processes
from premem_jax.running.goodput import Goodput
from premem_jax.running.lease import opened
from premem_jax.running.programs import Clock
from premem_jax.tasks import knowledge
from premem_jax.training.optimizer import constant_rate
from premem_jax.training.phase import Phase
from premem_jax.training.trainer import Trainer

FINETUNING = PRETRAINING | dict(weight_decay=0.0)

Asked = Mapping[str, tuple[int, int]]  # (amount, subset) of each finetune by its name


def run(config, folder: Path) -> dict:
    """Pretrains or continues the model of `config`, climbs every rung, and returns the summary with the table's rows.

    Raises:
      UserError: a mistake in config, mesh or folder, before training starts.
    """
    keys.check(config)
    clock = Clock()
    with opened(folder, config.to_dict()), Goodput(folder, clock) as goodput:
        ground = prepared(config, clock)
        asked = rung_rows.subsets(config.finetune, len(ground.splits["train"]))
        finetunes = dict(micro_batches=1, members=len(asked))
        trainer = Trainer(ground.model, ground.mesh, clock, FINETUNING, **finetunes) if asked else None
        rows = []
        for rung in pretrained(config, ground):
            here, about = folder / str(rung.step), f"{config.model.width}@{rung.step}"
            make = partial(measured, config, here, ground, rung, trainer, asked)
            if config.planted:
                make = partial(planted, config, len(ground.splits["test"]), rung, asked)
            rows += rung_rows.kept(here, make, loss=rung.loss, flops=rung.flops, model=about)
            goodput.keep()
        return processes.once(lambda: rung_rows.concluded(config, folder, goodput, rows))


def planted(config, items: int, rung: Rung, asked: Asked) -> list[dict]:
    """Rows as if `config.planted` were the law: right answers are drawn at its accuracies, at the rung's real loss."""
    elbow, largest, alpha, slope, floor = config.planted
    shots = config.evaluation.shots
    most = max(config.finetune.amounts, default=shots + 1)
    law = Law("log_power_law", shots, most, elbow, largest, alpha, slope, floor, floor)
    rng = np.random.default_rng([config.seed, config.model.width, rung.step])
    every = [(0, 0), *asked.values()]
    drawn = [rng.binomial(items, np.clip(law.accuracy(rung.loss, amount), 0, 1)) for amount, _ in every]
    return [
        dict(amount=amount, subset=str(k), accuracy=right / items, items=items)
        for (amount, k), right in zip(every, drawn, strict=True)
    ]


def measured(config, folder: Path, ground: Ground, rung: Rung, trainer: Trainer | None, asked: Asked) -> list[dict]:
    """Few-shot accuracy of a rung, and accuracy after each finetune, at the step that is best on `heldout`."""
    with ground.clock("load"):
        params = weights_of(rung, ground.mesh)
    few = suite(config, ground, folder / "fewshot", ("fewshot",), 0, ())
    few.run(0, {"": lambda: params})
    rows = [rung_rows.fewshot_row(read_trace(folder / "fewshot" / "trace"))]
    if not trainer:
        return rows

    def finetuned() -> list[dict]:
        finetune(config, folder / "finetunes", ground, params, trainer, asked)
        traces = {name: read_trace(folder / "finetunes" / "trace", member=name) for name in asked}
        return [rung_rows.finetuned_row(traces[name], *one) for name, one in asked.items()]

    return rows + rung_rows.once_made(folder / "finetunes" / "rows.json", finetuned)


def finetune(config, folder: Path, ground: Ground, params, trainer: Trainer, asked: Asked) -> None:
    """Trains the finetunes of a rung as one stack; their traces in `folder` have `heldout` and `test` on the way."""
    settings, train = config.finetune, ground.splits["train"]
    packing = Packing.on(ground.mesh)

    def source(amount: int, k: int):
        data = train.at(rung_rows.drawn(config.seed, amount, k, len(train)))
        order = dict(batch=settings.batch, seed=config.seed + k, buckets=(QUESTION + 1,))
        return partial(train_batches, data, **order, packing=packing)

    watched = suite(config, ground, folder, ("heldout", "test"), settings.steps, rung_rows.looks(settings))
    Phase(
        name="finetunes",
        folder=folder,
        trainer=trainer,
        steps=settings.steps,
        batches=partial(stacked, [source(*one) for one in asked.values()]),
        rate=lambda step: np.full(len(asked), constant_rate(step, peak=settings.learning_rate, warmup_steps=1)),
        save_every=settings.steps,
        keep=1,
        log_every=settings.steps,
        evaluate=watched.run,
        evaluation_steps=watched.steps,
        look_back=watched.make_again,
        members=tuple(asked),
    ).run(lambda: trainer.stack([params] * len(asked)))


def suite(config, ground: Ground, folder: Path, names, steps: int, looks) -> Suite:
    """Exact match on some splits after each of `looks` steps and at the end; the answer alone counts, not its end."""

    def answers(name: str) -> Split:
        data = ground.splits[name]
        data = dataclasses.replace(data, targets=[target[:-1] for target in data.targets])
        return Split(name, data, knowledge.GRADER)

    options = dict(type="exact_match", epochs=tuple(looks), batch=config.evaluation.batch)
    evals = {name: options | {"split": name} for name in names}
    return Suite(evals, {name: answers(name) for name in names}, ground.run, 1, steps, folder)
