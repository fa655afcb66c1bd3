"""One of anybody's checkpoints on a ladder of emergence: evaluated few-shot, and finetuned on growing amounts of data.

Its pretraining loss is given, or measured on a text. The one evaluator of the config is applied to the test examples
with solved ones before them, and during each finetune to `heldout` and `test`. Finetunes are phases as in
`experiments/finetune.py`, with its settings, adapters included; `folder/finetunes/AMOUNT-SUBSET/` is one of them.
"""

from collections.abc import Sequence
from functools import partial

from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis.trace import Trace, read_trace
from premem_jax.data.examples import Example
from premem_jax.data.fewshot import with_shots
from premem_jax.data.pipeline import Tokenized
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.suite import Suite
from premem_jax.experiments import materials, rung_rows
from premem_jax.experiments.finetune import Ready, batch_order, phase_settings, ready, run_of, tokenized
from premem_jax.running import processes, sealed, storage
from premem_jax.running.goodput import Goodput
from premem_jax.running.lease import opened
from premem_jax.running.programs import Clock
from premem_jax.training.optimizer import constant_rate
from premem_jax.training.phase import Phase
from premem_jax.training.trainer import Trainer


def run(config, folder: Path) -> dict:
    """Makes or continues the rows of one checkpoint, and returns the summary with them.

    Raises:
      UserError: a mistake in config, data, model, mesh or folder, before anything is measured.
    """
    keys.check(config)
    clock = Clock()
    with opened(folder, config.to_dict()), Goodput(folder, clock) as goodput:
        made = ready(config, folder, clock, tokenized)
        available = len(made.splits["train"])
        if max(config.finetune.amounts, default=0) > available:
            raise UserError(f"finetune.amounts={config.finetune.amounts}: there are {available} training examples")
        few = with_solved(config, made)
        about = {"model": f"{made.model.config.parameters}@{folder.name}", "loss": loss_of(config, folder, clock, made)}
        about |= {"flops": config.rung.flops} if config.rung.flops else {}
        rows = rung_rows.kept(folder, partial(measured, config, folder, clock, goodput, made, few), **about)
        return processes.once(lambda: rung_rows.concluded(config, folder, goodput, rows))


def loss_of(config, folder: Path, clock: Clock, made: Ready) -> float:
    """The pretraining loss in nats per token: the one given, or that on `rung.texts`, in windows of `data.context`."""
    if config.rung.loss:
        return config.rung.loss
    path, kept = storage.path(config.rung.texts), folder / "loss.json"
    try:
        data = path.read_bytes()
        windows = windows_of(data.decode(), made.tokenizer, config.data.context)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"rung.texts={path}: no text in UTF-8 that can be read ({error})") from error
    if not len(windows):
        raise UserError(f"rung.texts={path}: the file is empty")
    materials.claim(folder, {"text (of the loss)": sealed.digest(data)})

    def measure() -> list[dict]:
        [options] = config.evals.values()
        likelihood = Likelihood(Split("text", windows, made.grader), run_of(config, clock, made), batch=options.batch)
        params = made.base()
        with clock("score"):
            return [{"loss": rung_rows.token_loss(likelihood.measure(params, 0))}]

    return rung_rows.once_made(kept, measure)[0]["loss"]


def windows_of(text: str, tokenizer: Tokenizer, context: int) -> Tokenized:
    """A text in windows of `context` tokens, each after the start marker (or, without one, the end of a text)."""
    start, target = tokenizer.encode_pair("", text)
    ids, size = target[:-1], context - len(start)  # no stop marker
    windows = [ids[i : i + size] for i in range(0, len(ids), size)]
    examples = [Example(i, "", "", "") for i in range(len(windows))]
    return Tokenized(examples, [start] * len(windows), windows)


def with_solved(config, made: Ready) -> Tokenized:
    """The test examples with solved ones before them."""
    asked, train = config.evaluation, made.splits["train"].examples
    shot = with_shots(made.splits["test"].examples, train, asked.shots, config.seed, by=asked.by)
    return tokenized(config.data, "fewshot", shot, made.tokenizer)


def measured(config, folder: Path, clock: Clock, goodput: Goodput, made: Ready, few: Tokenized) -> list[dict]:
    """Few-shot accuracy, and accuracy after each finetune, at the evaluation that is best on `heldout`."""
    train = made.splits["train"]
    suite(config, folder / "fewshot", clock, made, {"fewshot": few}, [0]).run(0, {"": made.base})
    rows = [rung_rows.fewshot_row(read_trace(folder / "fewshot" / "trace"))]
    trainer = Trainer(made.model, made.mesh, clock, config.optimizer.to_dict(), config.train.micro_batches)
    for name, (amount, k) in rung_rows.subsets(config.finetune, len(train)).items():
        data = train.at(rung_rows.drawn(config.seed, amount, k, len(train)))
        make = partial(finetuned, config, folder / "finetunes" / name, made, trainer, data)
        found = rung_rows.once_made(
            folder / "finetunes" / name / "rows.json",
            lambda make=make, drawn=(amount, k): [rung_rows.finetuned_row(make(), *drawn)],
        )
        rows += found
        goodput.keep()
    return rows


def finetuned(config, folder: Path, made: Ready, trainer: Trainer, data: Tokenized) -> Trace:
    """The trace of a finetune on `data`."""
    looks, settings = rung_rows.looks(config.finetune), config.train
    splits = {name: made.splits[name] for name in ("heldout", "test")}
    watched = suite(config, folder, trainer.clock, made, splits, looks)
    rate = partial(constant_rate, peak=settings.learning_rate, warmup_steps=settings.warmup_steps)
    Phase(
        name=folder.name,
        folder=folder,
        trainer=trainer,
        batches=partial(train_batches, data, **batch_order(config, made.mesh)),
        evaluate=watched.run,
        evaluation_steps=watched.steps,
        look_back=watched.make_again,
        **phase_settings(config, folder, settings, config.finetune.steps) | dict(rate=rate),
    ).run(made.base)
    return read_trace(folder / "trace")


def suite(config, folder: Path, clock: Clock, made: Ready, splits: dict, looks: Sequence[int]) -> Suite:
    """The evaluator of the config on each of `splits`, after each of `looks` updates."""
    [options] = config.evals.values()
    evals = {name: options.to_dict() | dict(split=name, epochs=tuple(looks)) for name in splits}
    data = {name: Split(name, split, made.grader) for name, split in splits.items()}
    return Suite(evals, data, run_of(config, clock, made), 1, looks[-1], folder)
