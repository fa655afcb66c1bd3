"""Preference training on pairs of responses, optionally after supervised finetuning, with probes of all response types.

Source: Ren & Sutherland, arXiv 2407.10490. Both phases use the same pairs and batch size, so steps and epochs continue
from one to the other, and one trace covers the whole run. `sft/` has checkpoints and metrics of the first phase, the
run's folder those of the second; metrics count the updates of their own phase.
"""

import math
from functools import partial

from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis import copied, displacement, response_curves
from premem_jax.analysis.conclusion import conclude
from premem_jax.analysis.texts import texts_of_run
from premem_jax.analysis.trace import Trace, evaluation_steps, read_trace
from premem_jax.data.pairs import pair_batches, tokenize_pairs
from premem_jax.data.pipeline import Tokenized, steps_per_epoch
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.evaluators.suite import Suite
from premem_jax.experiments import finetune, reference_model
from premem_jax.experiments.decomposition import Decomposition
from premem_jax.experiments.finetune import Ready
from premem_jax.experiments.on_policy import Rounds
from premem_jax.experiments.reference_model import Reference
from premem_jax.running import processes, progress, workdir
from premem_jax.running.goodput import Goodput
from premem_jax.running.lease import opened
from premem_jax.running.programs import Clock
from premem_jax.training.objectives import Likelihood, Responses, objective
from premem_jax.training.phase import Phase
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer

COLUMNS = {
    "epoch": "epoch",
    "chosen": "log π(y⁺)",
    "rejected": "log π(y⁻)",
    response_curves.GREEDY: "greedy path",
    "margin": "margin",
    "reward_accuracy": "reward acc",
    "test_accuracy": "test acc",
}
FORMATS = {name: "{:.2f}" for name in COLUMNS if not name.endswith("accuracy")}


def run(config, folder: Path) -> dict:
    """Runs or continues the preference training of `config` in `folder`; writes and returns the summary.

    Raises:
      UserError: a mistake in config, pairs, mesh or folder, before training starts.
    """
    keys.check(config)
    clock = Clock()
    with opened(folder, config.to_dict()), Goodput(folder, clock) as goodput:
        trained, splits, first = train(config, folder, clock, goodput)
        pairs = None
        if evaluation_steps(folder / "trace"):
            trace, since = read_trace(folder / "trace"), trained["sft_steps"]
            ches = dict(zip(splits["train"].ids.tolist(), first.ches.tolist(), strict=True))
            pairs = {"ches": ches, "change": displacement.displacement(trace, since)}
            trained |= response_curves.summary(trace, since) | displacement.predicted(ches, trace, since)
            trained |= processes.once(lambda: hallucination(folder, trace, splits, since))
        return processes.once(lambda: finetune.report(config, folder, goodput, trained, splits, pairs))


def hallucination(folder: Path, trace: Trace, splits: dict[str, Tokenized], since: int) -> dict[str, float]:
    """Shares of greedy responses to test prompts that repeat a passage of a training answer.

    Before training, at step `since` where preference training begins, and at the end; `copied_by_chance` is the share
    among the test split's own chosen responses.
    """
    answers = [(e.prompt, text) for e in splits["train"].examples for text in (e.target, e.rejected)]
    found = copied.shares(answers, texts_of_run(folder, trace), "test greedy")
    at = {"copied_before": 0, "copied_after_sft": since, "copied_after": int(trace.steps[-1])}
    shares = {name: found[step] for name, step in at.items() if step in found}
    if shares:
        said = [(e.prompt, e.target) for e in splits["test"].examples]
        shares["copied_by_chance"] = copied.Copied(answers).share(said)
    return {name: round(share, 4) for name, share in shares.items()}


def train(
    config, folder: Path, clock: Clock, goodput: Goodput
) -> tuple[dict[str, int], dict[str, Tokenized], Reference]:
    """Both phases and the exported model; returns sizes for the summary, the data, and what the second began from."""
    made = finetune.ready(config, folder, clock, pairs)
    per_epoch = steps_per_epoch(len(made.splits["train"]), config.train.batch)
    before, steps = (epochs * per_epoch for epochs in (config.sft.epochs, config.train.epochs))
    suite = finetune.suite_of(config, folder, clock, made, per_epoch, before + steps)
    run = finetune.run_of(config, clock, made)
    split = Decomposition(config, folder, made, run)
    table, row = progress.Table(COLUMNS, FORMATS), partial(row_of, config, before)
    evaluate = finetune.evaluation(folder, suite, goodput, table, row)
    phase = partial(phase_of, config, clock, made, suite, split, evaluate)
    start = made.base
    if before:
        workdir.check_room(folder, 24 * made.model.config.trained)
        answers = {"chosen": 1, "both": 2}[config.sft.answers]
        sft = phase("sft", folder / "sft", config.sft, Responses(Likelihood()), (0, before), responses=answers)
        start = lambda: weights(sft.run(made.base))
    asked = objective(config.preference.objective, config.preference.to_dict())
    first = reference_model.measured(config, folder, clock, made, made.splits["train"], start)
    given = first.log_likelihood if asked.given else None
    pairwise = Responses(asked, gate=config.preference.gate)
    last = phase("preference", folder, config.train, pairwise, (before, before + steps), reference_ER=given)
    sizes = {}
    if config.on_policy.every:
        rounds = Rounds(config, folder, clock, made, run, asked, start)
        state = rounds.train(last)
        sizes["on_policy_share"] = processes.once(rounds.share)
    else:
        state = last.run(start)
    finetune.export(config, folder, clock, made, weights(state))
    sizes |= {"steps": before + steps, "sft_steps": before, "epochs": config.sft.epochs + config.train.epochs}
    return sizes | {"train_pairs": len(made.splits["train"]), "first_example": made.seen}, made.splits, first


def row_of(config, since: int, trace: Trace) -> dict[str, float]:
    """The curves of `COLUMNS` at the last evaluation; preference training began at step `since`."""
    found = response_curves.curves_by_type(trace) | response_curves.margins(trace, since)
    found |= {"epoch": trace.epochs, "test_accuracy": conclude(trace, **config.threshold).curves["test_accuracy"]}
    return {name: float(found[name][-1]) if name in found else math.nan for name in COLUMNS}


def pairs(data, name: str, examples, tokenizer: Tokenizer) -> Tokenized:
    """Tokenizes a split of pairs."""
    drop = data.bad_pairs == "drop"
    return tokenize_pairs(name, examples, tokenizer, context=data.context, drop=drop, drop_long=data.drop_long)


def phase_of(
    config,
    clock: Clock,
    made: Ready,
    suite: Suite,
    split: Decomposition,
    evaluate,
    name: str,
    folder: Path,
    settings,
    loss: Responses,
    between: tuple[int, int],
    **batches,
) -> Phase:
    """The phase for the updates `between` two steps of the run; `settings` has its learning rate and warm-up.

    The evaluation at the boundary belongs to the phase that ends there.
    """
    first, last = between
    steps = last - first
    trainer = Trainer(made.model, made.mesh, clock, config.optimizer.to_dict(), config.train.micro_batches, loss)

    def look_back(kept, weights_at) -> None:
        suite.make_again([step + first for step in kept], lambda step: weights_at(step - first))

    return Phase(
        name=name,
        folder=folder,
        trainer=trainer,
        batches=partial(pair_batches, made.splits["train"], **finetune.batch_order(config, made.mesh), **batches),
        evaluate=lambda step, weights: evaluate(step + first, weights),
        evaluation_steps=[step - first for step in suite.steps if step <= last and (step > first or not first)],
        inspect=partial(split.write, first),
        inspected=split.steps(steps),
        look_back=look_back,
        **finetune.phase_settings(config, folder, settings, steps),
    )
