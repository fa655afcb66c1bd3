"""Finetune a model and watch every training example: trace, pre-memorization accuracy, report."""

import json
import logging
import math
from collections.abc import Iterable
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax import processes, progress, sharding, storage, workdir
from premem_jax.analysis import threshold
from premem_jax.analysis.curves import run_curves
from premem_jax.analysis.trace import evaluation_steps, read_trace
from premem_jax.atomic import write_text
from premem_jax.data import tasks
from premem_jax.data.pipeline import Tokenized, steps_per_epoch, tokenize, train_batches
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Context
from premem_jax.evaluators.suite import Suite
from premem_jax.experiments import checks, hugging_face
from premem_jax.experiments.base_model import base_parameters
from premem_jax.goodput import Goodput
from premem_jax.lease import lease
from premem_jax.models.decoder import Model
from premem_jax.programs import Clock, Profile
from premem_jax.training.checkpoints import Checkpoints
from premem_jax.training.loop import fit
from premem_jax.training.metrics import Metrics
from premem_jax.training.optimizer import learning_rate
from premem_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

COUNTS = (
    "epochs",
    "batch",
    "batches",
    "micro_batches",
    "length_window",
    "every",
    "keep",
    "log_every",
    "samples",
    "max_new_tokens",
    "first_round",
)


def run(config, folder: Path) -> dict:
    """Runs or continues the finetune of `config` in `folder`, and returns the summary that it writes there.

    Raises:
      UserError: anything wrong with the config, the data, the mesh or the folder, before the training starts.
    """
    clock = Clock()
    workdir.claim(folder, config.to_dict())
    with lease(folder), Goodput(folder, clock) as goodput:
        train(config, folder, clock, goodput)
        return processes.once(lambda: conclude(config, folder, goodput))


def train(config, folder: Path, clock: Clock, goodput: Goodput) -> None:
    """Everything up to the last evaluation and the exported model."""
    # ---- Data and tokenizer -----------------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config.mesh)
    asked = {k: config.data[k] for k in ("path", "train", "heldout", "test", "seed")}
    with processes.leader_first():
        task = tasks.load(config.data.task, **asked, cache=config.cache)
    checkpoint = hugging_face.checkpoint_of(config)
    options = config.tokenizer.to_dict() | dict(path=config.tokenizer.path or config.model.path)
    with processes.leader_first():
        tokenizer = Tokenizer.load_or_train(folder / "tokenizer.model", task.tokenizer_texts(), **options)
    splits = {name: tokenized(config.data, name, examples, tokenizer) for name, examples in task.splits.items()}
    check(config, mesh, splits)
    per_epoch = steps_per_epoch(len(splits["train"]), config.train.batch)
    steps = config.train.epochs * per_epoch

    # ---- Model, evaluators, train state -----------------------------------------------------------------------------
    model = hugging_face.model_of(config, checkpoint, tokenizer, mesh)
    trainer = Trainer(model, mesh, clock, config.optimizer.to_dict(), config.train.micro_batches)
    base = partial(base_parameters, config, model, checkpoint, task, tokenizer, mesh, clock)
    contexts = contexts_of(splits, tokenizer, model, mesh, clock, config, base)
    suite = Suite(config.evals.to_dict(), contexts, per_epoch, steps, folder, known_threshold(config.threshold))
    per_parameter = 12 * (config.checkpoint.keep + 1) + (4 if config.checkpoint.export else 0)
    workdir.check_room(folder, per_parameter * model.config.parameters)
    processes.once(lambda: write_text(folder / "examples.jsonl", texts_of(splits)))
    with clock("checkpoint"):
        checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
        state = checkpoints.restore(mesh, trainer.abstract_state)
    if state is None:
        state = trainer.init_state(base())
    elif int(state["step"]) < steps:
        progress.say(f"continuing {folder} at step {int(state['step'])} of {steps}")

    # ---- Train ------------------------------------------------------------------------------------------------------
    metrics = Metrics(folder, int(state["step"]))
    table = progress.Table()

    def evaluate(step: int, state: dict) -> None:
        suite.run(step, state["params"])
        if not processes.leads():
            return
        trace = read_trace(folder / "trace", up_to=step)
        if not measured(config.threshold, trace):
            return
        row = {name: float(x[-1]) for name, x in curves_of(trace, choose(config.threshold, trace)).items()}
        metrics.write(step, {name: row[name] for name in progress.COLUMNS})
        metrics.flush()
        table.line(row)
        goodput.keep()

    schedule = dict(peak=config.train.learning_rate, warmup_steps=config.train.warmup_steps, steps=steps)
    batches = train_batches(
        splits["train"],
        batch=config.train.batch,
        seed=config.seed,
        buckets=config.data.buckets,
        window=config.train.length_window,
        start=int(state["step"]),
        stop=steps,
        here=sharding.rows_here(mesh, config.train.batch),
    )
    state = fit(
        state,
        steps,
        name="finetune",
        program=trainer.program,
        batches=batches,
        rate=lambda step: learning_rate(step, **schedule),
        mesh=mesh,
        clock=clock,
        checkpoints=checkpoints,
        save_every=config.checkpoint.every,
        metrics=metrics,
        log_every=config.log_every,
        evaluate=evaluate,
        evaluation_steps=suite.steps,
        profile=Profile(folder / "profile", **config.profile),
    )
    with clock("checkpoint"):
        checkpoints.wait()
        checkpoints.close()
    metrics.close()
    if config.checkpoint.export:
        with clock("export"):
            hugging_face.export(config, folder / "export", state["params"], model, checkpoint, tokenizer, mesh)


def tokenized(data, name: str, examples, tokenizer: Tokenizer) -> Tokenized:
    """A split in tokens; says how many examples were left out."""
    split = tokenize(name, examples, tokenizer, context=data.context, drop_long=data.drop_long)
    if dropped := len(examples) - len(split):
        log.warning("split %s: %d of %d examples left out as too long", name, dropped, len(examples))
    return split


def check(config, mesh, splits: dict[str, Tokenized]) -> None:
    """Raises UserError where the config asks for what makes no sense, or what the mesh or the data cannot give."""
    groups = {"train": config.train, "base": config.base, "checkpoint": config.checkpoint, "config": config}
    groups |= {f"evals.{name}": options for name, options in config.evals.items()}
    checks.counts(groups, COUNTS)
    checks.dtype("compute_dtype", config.compute_dtype)
    checks.dtype("checkpoint.export_dtype", config.checkpoint.export_dtype)
    checks.batches({"train.batch / train.micro_batches": config.train.batch / config.train.micro_batches}, mesh)
    evals = {f"evals.{name}.batch": options for name, options in config.evals.items() if "batch" in options}
    sampled = {name: options.batch for name, options in evals.items() if options.type in ("accuracy", "confidence")}
    parts = {name: options.batch / options.get("micro_batches", 1) for name, options in evals.items()}
    checks.batches({name: size for name, size in parts.items() if name not in sampled}, mesh)
    checks.batches(sampled, sharding.decode_mesh(mesh, config.mesh.decode_tensor))
    rule, split = config.threshold.rule, config.threshold.split
    skipping = {name: options.split for name, options in config.evals.items() if options.get("skip_settled")}
    perturbed = [name for name in skipping if config.evals[name].opening or config.evals[name].reworded]
    if perturbed:
        raise UserError(
            f"evals.{perturbed[0]}: skip_settled is for the metric, and with an opening or reworded nothing is in it"
        )
    if skipping and (rule != "given" or {*skipping.values()} != {"train"}):
        raise UserError(
            f"evals.{next(iter(skipping))}.skip_settled: samples are skipped on the split 'train' alone, and with a "
            "threshold that is known before the run; set threshold.rule=given and threshold.perplexity"
        )
    scored = {options.split for options in config.evals.values() if options.type == "likelihood"}
    if rule not in ("given", "heldout_quantile"):
        raise UserError(f"threshold.rule={rule!r}: choose given or heldout_quantile")
    if rule == "heldout_quantile" and split not in scored:
        raise UserError(
            f"threshold.split={split!r} has no likelihood evaluator (there are: {', '.join(sorted(scored))})"
        )
    if rule == "heldout_quantile" and len(splits.get(split, ())) < threshold.MIN_EXAMPLES:
        raise UserError(
            f"threshold.rule={rule!r} needs at least {threshold.MIN_EXAMPLES} examples in {split!r}, and there are "
            f"{len(splits.get(split, ()))}; raise data.{split}, or set threshold.rule=given and threshold.perplexity"
        )
    if rule == "given" and config.threshold.perplexity <= 1:
        raise UserError(f"threshold.perplexity={config.threshold.perplexity}: a perplexity is above 1")


def contexts_of(splits, tokenizer: Tokenizer, model: Model, mesh, clock: Clock, config, base) -> dict[str, Context]:
    """What the evaluators of each split are given."""
    rules = tasks.RULES[config.data.task]
    buckets, decode_tensor = tuple(config.data.buckets), config.mesh.decode_tensor
    return {
        name: Context(name, data, rules, tokenizer, model, mesh, clock, config.seed, buckets, decode_tensor, base)
        for name, data in splits.items()
    }


def known_threshold(config) -> float | None:
    """The perplexity below which an example counts as memorized, where the config gives it; None where it is found."""
    return config.perplexity if config.rule == "given" else None


def choose(config, trace) -> threshold.Threshold:
    """The memorization threshold by the rule of the config."""
    if config.rule == "given":
        return threshold.given(config.perplexity)
    return threshold.heldout_quantile(trace.split(config.split).nll, config.quantile)


def measured(config, trace) -> bool:
    """Whether the trace holds what the metric needs: the train split and, for the rule, the held-out one."""
    return {"train", "train" if config.rule == "given" else config.split} <= trace.splits.keys()


def curves_of(trace, chosen: threshold.Threshold) -> dict:
    """The run so far; test accuracy is unknown until it is first measured."""
    return run_curves(trace, chosen, test="test" if "test" in trace.splits else None)


def texts_of(splits: dict[str, Tokenized]) -> str:
    """JSON lines {split, example, prompt, reference} of all examples, for the report."""
    rows = (
        {"split": name, "example": e.id, "prompt": e.prompt, "reference": e.target.strip()}
        for name, data in splits.items()
        for e in data.examples
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(paths: Iterable[Path]) -> list[dict]:
    """All rows of some files of JSON lines."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def conclude(config, folder: Path, goodput: Goodput) -> dict:
    """Analysis, report and `summary.json` of a finished run, from its files alone."""
    from premem_jax.report.page import headline, write_report  # matplotlib, which a run does without until here

    trace = read_trace(folder / "trace")
    chosen = choose(config.threshold, trace)
    curves = curves_of(trace, chosen)
    last = {name: float(x[-1]) if math.isfinite(x[-1]) else None for name, x in curves.items()}
    summary = {
        "experiment": config.experiment,
        **{name: last[name] for name in progress.COLUMNS if name != "epoch"},
        "threshold": chosen.perplexity,
        "threshold_rule": chosen.rule,
        **{f"threshold_{name}": value for name, value in chosen.detail.items()},
        "steps": int(trace.steps[-1]),
        "epochs": config.train.epochs,
        "train_examples": len(trace.split("train").example),
        "decided_on_host": int(sum(np.sum(split.decided_on_host) for split in trace.splits.values())),
        "samples_skipped": int(sum(np.sum(split.skipped) for split in trace.splits.values())),
        "evaluations": len(evaluation_steps(folder / "trace")),
        **goodput.summary(),
        "workdir": str(folder),
        "report": str(folder / "report.html"),
        **workdir.facts(),
    }
    examples = rows_of([folder / "examples.jsonl"])
    samples = rows_of(file for file in storage.files(folder / "samples") if file.suffix == ".jsonl")
    write_report(folder, trace, curves, chosen, summary, examples, samples)
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    goodput.keep(finished=True)
    progress.say(f"\n{headline(curves)}\nLook at {summary['report']}")
    return summary
