"""Finetune a model and measure every training example: trace, pre-memorization accuracy, report."""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from etils.epath import Path
from jax.sharding import Mesh

from premem_jax import keys, sharding
from premem_jax.analysis import estimate
from premem_jax.analysis.conclusion import conclude
from premem_jax.analysis.curves import INTERVALS, NAMES, interval
from premem_jax.analysis.texts import texts_of_run
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import NOTHING, Trace, evaluation_steps, read_trace
from premem_jax.data import added, chat
from premem_jax.data.markers import shown
from premem_jax.data.packing import Packing
from premem_jax.data.pipeline import Tokenized, joined, steps_per_epoch, tokenize
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizer_files import load_or_train
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.run import Run
from premem_jax.evaluators.settled import Unsettled
from premem_jax.evaluators.suite import Suite
from premem_jax.experiments import checks, hugging_face, materials
from premem_jax.experiments.base_model import base_parameters
from premem_jax.grading.grader import Grader
from premem_jax.models.decoder import Model
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import processes, progress, sealed, storage, workdir
from premem_jax.running.atomic import write_text
from premem_jax.running.goodput import Goodput
from premem_jax.running.lease import opened
from premem_jax.running.programs import Clock, Profile
from premem_jax.tasks import task as tasks
from premem_jax.training.optimizer import learning_rate
from premem_jax.training.phase import Phase, Weights
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


def run(config, folder: str | os.PathLike) -> dict:
    """Runs or continues the finetune of `config` in `folder`, and returns the summary that it writes there.

    A config without a cache gets one beside the folder, as on the command line.

    Raises:
      UserError: a mistake in config, data, mesh or folder, before training starts.
    """
    keys.check(config)
    clock, folder = Clock(), storage.path(folder)
    config.cache = config.cache or str(folder.parent / "cache")
    with opened(folder, config.to_dict()), Goodput(folder, clock) as goodput:
        trained, splits = train(config, folder, clock, goodput)
        return processes.once(lambda: report(config, folder, goodput, trained, splits))


def train(config, folder: Path, clock: Clock, goodput: Goodput) -> tuple[dict[str, int], dict[str, Tokenized]]:
    """Everything up to the last evaluation and the exported model; returns its size for the summary, and its data."""
    made = ready(config, folder, clock, tokenized)
    settings = config.train
    trained_on = joined([made.splits[name] for name in ("train", added.SPLIT) if name in made.splits])
    trainer = Trainer(made.model, made.mesh, clock, config.optimizer.to_dict(), settings.micro_batches)
    per_epoch = steps_per_epoch(len(trained_on), settings.batch)
    steps = settings.epochs * per_epoch
    suite = suite_of(config, folder, clock, made, per_epoch, steps)
    extended = processes.once(lambda: extension(config, folder, per_epoch))
    if extended:
        progress.say(extended)
    phase = Phase(
        name="finetune",
        folder=folder,
        trainer=trainer,
        batches=partial(train_batches, trained_on, **batch_order(config, made.mesh)),
        evaluate=evaluation(folder, suite, goodput, progress.Table(), partial(row_of, config)),
        evaluation_steps=suite.steps,
        look_back=suite.make_again,
        **phase_settings(config, folder, settings, steps),
    )
    export(config, folder, clock, made, weights(phase.run(made.base)))
    sizes = {"steps": steps, "epochs": settings.epochs, "train_examples": len(trained_on)}
    sizes |= {"first_example": made.seen} | ({"extended": extended} if extended else {})
    return sizes, made.splits


def batch_order(config, mesh: Mesh) -> dict:
    """What batches of training data are made by."""
    train = config.train
    packing = Packing.on(mesh, train.packed_tokens, train.batch, train.micro_batches)
    order = dict(batch=train.batch, seed=config.seed, buckets=config.data.buckets, window=train.length_window)
    return order | {"packing": packing}


def phase_settings(config, folder: Path, settings, steps: int) -> dict:
    """Fields of a phase of so many updates that are settings; `settings` has its learning rate and warm-up."""
    return dict(
        steps=steps,
        rate=partial(learning_rate, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=steps),
        save_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        log_every=config.log_every,
        profile=Profile(folder / "profile", **config.profile),
        trackers=tuple(config.trackers),
    )


def extension(config, folder: Path, per_epoch: int) -> str:
    """What more epochs mean for the learning rate, of a run that was extended by some; otherwise empty."""
    train = config.train
    if train.epochs == (epochs := max((c["train"]["epochs"] for c in workdir.earlier(folder)), default=train.epochs)):
        return ""
    rate = partial(learning_rate, epochs * per_epoch, peak=train.learning_rate, warmup_steps=train.warmup_steps)
    return (
        f"extended from {epochs} to {train.epochs} epochs: earlier updates had the schedule of {epochs} epochs, whose "
        f"learning rate comes down to 0 at update {epochs * per_epoch}; later ones have that of {train.epochs}, with "
        f"{rate(steps=train.epochs * per_epoch):.3g} there, so a run of {train.epochs} epochs from the start differs"
    )


class Ready(NamedTuple):
    """Model, data and tokenizer of a run, before anything is compiled; `base` makes the initial weights.

    `seen` is what the model sees of the first training example.
    """

    mesh: Mesh
    checkpoint: Checkpoint | None
    tokenizer: Tokenizer
    splits: dict[str, Tokenized]
    grader: Grader
    model: Model
    base: Callable[[], dict]
    seen: dict


def ready(config, folder: Path, clock: Clock, split_of: Callable[..., Tokenized]) -> Ready:
    """Loads data, tokenizer and model of a run, and records them; `split_of` tokenizes a split, as `tokenized` does.

    Raises:
      UserError: a mistake in data, mesh or folder.
    """
    mesh = sharding.make_mesh(config.mesh)
    asked = {k: config.data[k] for k in ("path", "train", "heldout", "test", "seed", "grader", "prompt", "target")}
    with processes.leader_first():
        task = tasks.load(config.data.task, **asked, cache=config.cache)
    if path := config.data.get("added"):
        task = task._replace(splits=task.splits | {added.SPLIT: added.read(storage.path(path))})
    checkpoint = hugging_face.checkpoint_of(config)
    options = config.tokenizer.to_dict() | dict(path=hugging_face.tokenizer_of(config, checkpoint))
    with processes.leader_first():
        tokenizer = load_or_train(folder / "tokenizer.model", task.tokenizer_texts(), **options)
    template = chat.template_of(config.data.template, tokenizer)
    task = task._replace(splits=chat.applied(template, tokenizer, task.splits))
    splits = {name: split_of(config.data, name, examples, tokenizer) for name, examples in task.splits.items()}
    seen = saw(splits["train"], tokenizer, template)
    checks.finetune(config, mesh, task, splits)
    made_of = materials.of_examples(task.splits) | materials.of_grader(config.data.grader)
    made_of |= materials.of_tokenizer(tokenizer) | materials.of_folder(checkpoint)
    materials.claim(folder, made_of)
    model = hugging_face.model_of(config, checkpoint, tokenizer, mesh)
    base = partial(base_parameters, config, model, checkpoint, task, tokenizer, mesh, clock, folder)
    exported = 4 * model.config.parameters if config.checkpoint.export else 0
    workdir.check_room(folder, 12 * (config.checkpoint.keep + 1) * model.config.trained + exported)
    lines = "".join(json.dumps(row) + "\n" for row in texts_of(splits))
    processes.once(lambda: write_text(folder / "examples.jsonl", lines))
    return Ready(mesh, checkpoint, tokenizer, splits, task.grader, model, base, seen)


def run_of(config, clock: Clock, made: Ready) -> Run:
    """What evaluators share."""
    buckets, decode_tensor = tuple(config.data.buckets), config.mesh.decode_tensor
    return Run(made.tokenizer, made.model, made.mesh, clock, config.seed, buckets, decode_tensor, made.base)


def suite_of(config, folder: Path, clock: Clock, made: Ready, per_epoch: int, steps: int) -> Suite:
    """The evaluators of a run with this many updates."""
    measured_on = {name: Split(name, data, made.grader) for name, data in made.splits.items()}
    on = run_of(config, clock, made)
    wanted = Unsettled(folder / "trace", config.threshold, processes.once)
    return Suite(config.evals.to_dict(), measured_on, on, per_epoch, steps, folder, wanted)


def export(config, folder: Path, clock: Clock, made: Ready, params) -> None:
    """Writes the trained weights as a Hugging Face folder, if the config asks for it."""
    if config.checkpoint.export:
        with clock("export"):
            model, checkpoint, tokenizer = made.model, made.checkpoint, made.tokenizer
            hugging_face.export(config, folder / "export", params, model, checkpoint, tokenizer, made.mesh)


def evaluation(
    folder: Path, suite: Suite, goodput: Goodput, table: progress.Table, row_of: Callable[[Trace], dict[str, float]]
) -> Callable[[int, Weights], dict | None]:
    """What a phase calls: the evaluators that are due, and a line of the table, whose numbers go to the metrics.

    `row_of` makes these numbers from the trace so far.
    """

    def evaluate(step: int, trained: Weights) -> dict[str, float] | None:
        suite.run(step, trained)
        if not processes.leads():
            return None
        goodput.keep()
        row = row_of(read_trace(folder / "trace", up_to=step))
        table.line(row)
        return row

    return evaluate


def row_of(config, trace: Trace) -> dict[str, float]:
    """The curves of a run at its last evaluation."""
    curves = conclude(trace, **config.threshold).curves
    return {name: float(values[-1]) for name, values in curves.items() if name not in ("step", "threshold")}


def tokenized(data, name: str, examples, tokenizer: Tokenizer) -> Tokenized:
    """Tokenizes a split; logs the number of omitted examples."""
    split = tokenize(name, examples, tokenizer, context=data.context, drop_long=data.drop_long)
    if dropped := len(examples) - len(split):
        log.warning("split %s: %d of %d examples left out as too long", name, dropped, len(examples))
    return split


def saw(split: Tokenized, tokenizer: Tokenizer, template: chat.Template | None) -> dict[str, str]:
    """What the model sees of the first example, control tokens by name; says it."""
    prompt, target = (tokenizer.shown(ids[0]) for ids in (split.prompts, split.targets))
    sizes = f"{len(split.prompts[0])} + {len(split.targets[0])} tokens"
    how = "as the chat template writes it" if template else "without a chat template"
    progress.say(f"the model sees the first training example {how}, {sizes}: {prompt!r}, and learns {target!r}")
    return {"prompt": prompt, "target": target, "about": f"{how}, {sizes}"}


def texts_of(splits: dict[str, Tokenized]) -> list[dict]:
    """Rows {split, example, prompt, reference} of all examples, with `rejected` of pairs, and `metadata` if any."""
    return [
        {"split": name, "example": e.id, "prompt": shown(e.prompt), "reference": shown(e.target).strip()}
        | ({"rejected": shown(e.rejected).strip()} if len(data.rejected) else {})
        | ({"metadata": dict(e.metadata)} if e.metadata else {})
        for name, data in splits.items()
        for e in data.examples
    ]


def report(
    config,
    folder: Path,
    goodput: Goodput,
    trained: dict,
    splits: dict[str, Tokenized],
    pairs: Mapping[str, Mapping[int, float]] | None = None,
) -> dict:
    """Writes analysis, report and `summary.json` of a finished run, from its trace, its sampled texts and its data.

    `pairs`: further columns of the page's table of pairs, by example.
    """
    # Matplotlib, which a run does without until here.
    from premem_jax.report import audit_page
    from premem_jax.report.page import headline, write_report

    steps = evaluation_steps(folder / "trace")
    trace = read_trace(folder / "trace") if steps else NOTHING
    chosen, curves = conclude(trace, **config.threshold)
    limits = {"threshold": None, "threshold_rule": "none"}
    if chosen:
        limits = {"threshold": chosen.at_end, "threshold_rule": chosen.rule}
        limits |= {f"threshold_{name}": value for name, value in chosen.detail.items()}
    summary = {
        "experiment": config.experiment,
        "task": config.data.task,
        **last_values(curves),
        "extrapolation": extrapolation(trace, chosen),
        **limits,
        **trained,
        "decided_on_host": int(sum(np.sum(split.decided_on_host) for split in trace.splits.values())),
        "samples_skipped": int(sum(np.sum(split.skipped) for split in trace.splits.values())),
        "evaluations": len(steps),
        **({"evaluations_lost": list(trace.lost)} if trace.lost else {}),
        **goodput.summary(),
        "workdir": str(folder),
        "report": str(folder / "report.html"),
        **workdir.facts(),
    }
    samples = texts_of_run(folder, trace)
    audited = audit_page.audited(folder, trace, chosen, curves)
    write_report(folder, trace, curves, chosen, summary, texts_of(splits), samples, audited=audited, pairs=pairs)
    sealed.write_json(folder / "summary.json", summary)
    goodput.keep(finished=True)
    progress.say(f"\n{headline(curves, summary)}\nLook at {summary['report']}")
    return summary


def last_values(curves: dict[str, np.ndarray]) -> dict[str, float | list[float] | None]:
    """The last value of each curve, and the 95 % interval of those with a standard error; None where it is unknown."""
    known = lambda x: float(x[-1]) if len(x) and math.isfinite(x[-1]) else None
    values: dict[str, float | list[float] | None] = {name: known(curves[name]) for name in NAMES}
    for name in INTERVALS:
        value, error = values[name], known(curves[f"{name}_error"])
        values[f"{name}_interval"] = None if value is None or error is None else list(interval(value, error))
    return values


def extrapolation(trace, chosen: Threshold | None) -> float | None:
    """`estimate.extrapolation` of the training examples; None where it is unknown."""
    if chosen is None or "train" not in trace.splits:
        return None
    value = estimate.extrapolation(trace.splits["train"], chosen.perplexity)
    return None if math.isnan(value) else value
