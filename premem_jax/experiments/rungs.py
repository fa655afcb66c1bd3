"""One size of model on the ladder of emergence: pretrained, and each checkpoint finetuned on growing amounts of data.

The learning rate is constant after warm-up, so each checkpoint (a rung) is a model of its own. A rung is kept as a
Hugging Face folder in the cache, and pretraining is done once for all settings of the finetunes. The finetunes of a
rung on all amounts and subsets are trained as one stack. `folder/STEP/` has the traces of a rung and, once it is done,
`rows.json`: its rows of the table that `experiments/emergence.py` reads.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
from etils.epath import Path

from premem_jax import keys, sharding, together
from premem_jax.analysis.emergence_law import Law
from premem_jax.analysis.trace import SplitTrace, read_trace
from premem_jax.data import tokenizer_export
from premem_jax.data.fewshot import with_shots
from premem_jax.data.packing import Packing
from premem_jax.data.pipeline import Tokenized, tokenize
from premem_jax.data.reader import stacked, train_batches
from premem_jax.data.tokenizers import SentencePiece, Tokenizer
from premem_jax.data.tokenizers import train as train_tokenizer
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.run import Run
from premem_jax.evaluators.suite import Suite
from premem_jax.experiments import hugging_face, materials
from premem_jax.models.architecture import ModelConfig, preset
from premem_jax.models.decoder import Model, build
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import Checkpoint, save
from premem_jax.running import processes, progress, sealed, storage, workdir
from premem_jax.running.goodput import Goodput
from premem_jax.running.lease import lease, opened
from premem_jax.running.programs import Clock
from premem_jax.tasks import knowledge
from premem_jax.tasks.knowledge import World
from premem_jax.training.optimizer import constant_rate
from premem_jax.training.phase import Phase, Weights
from premem_jax.training.trainer import Trainer

CONTEXT = knowledge.WORDS + 2  # a base text with its markers
QUESTION = 4  # tokens of a question and its answer, without the marker at its end
HELDOUT_SEED = 2**31  # plus that of the run; its texts are in no training set
PRETRAINING = dict(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.05, clip_norm=1.0)
FINETUNING = PRETRAINING | dict(weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class Rung:
    """A checkpoint of the pretraining: its loss in nats per token on the held-out mix, and its cost so far."""

    step: int
    loss: float
    flops: float
    weights: str  # SHA-256 over the checksums of their values
    folder: Path


@dataclasses.dataclass(frozen=True)
class Ground:
    """What all rungs share: data and tokenizer, model and mesh."""

    world: World
    tokenizer: Tokenizer
    splits: Mapping[str, Tokenized]  # train, heldout, test; fewshot is test with solved examples
    run: Run
    trainer: Trainer | None  # of the finetunes of a rung, if there are any

    @property
    def clock(self) -> Clock:
        return self.run.clock

    @property
    def model(self) -> Model:
        return self.run.model

    @property
    def mesh(self):
        return self.run.mesh


def run(config, folder: Path) -> dict:
    """Pretrains or continues the model of `config`, climbs every rung, and returns the summary with the table's rows.

    Raises:
      UserError: a mistake in config, mesh or folder, before training starts.
    """
    keys.check(config)
    clock = Clock()
    with opened(folder, config.to_dict()), Goodput(folder, clock) as goodput:
        ground = prepared(config, clock)
        rows = []
        for rung in pretrained(config, ground):
            rows += climbed(config, folder / str(rung.step), ground, rung)
            goodput.keep()
        return processes.once(lambda: concluded(config, folder, goodput, rows))


def concluded(config, folder: Path, goodput: Goodput, rows: list[dict]) -> dict:
    """Writes and returns the summary."""
    few = [row for row in rows if not row["amount"]]
    last = min(few, key=lambda row: row["loss"])
    finetuned = [row["accuracy"] for row in rows if row["amount"] and row["loss"] == last["loss"]]
    summary = {
        "experiment": config.experiment,
        "rungs": len(few),
        "loss": last["loss"],
        "fewshot_accuracy": last["accuracy"],
        "finetuned_accuracy": max(finetuned, default=None),
        "rows": rows,
        "forecast": config.forecast,
        **goodput.summary(),
        "workdir": str(folder),
        **workdir.facts(),
    }
    sealed.write_json(folder / "summary.json", summary)
    goodput.keep(finished=True)
    return summary


# ---- What all rungs share --------------------------------------------------------------------------------------------


def prepared(config, clock: Clock) -> Ground:
    """Data, tokenizer and model; nothing is compiled yet.

    Raises:
      UserError: a batch does not divide over the mesh.
    """
    mesh = sharding.make_mesh(config.mesh)
    sizes = {f"{group}.batch": config[group].batch for group in ("pretrain", "finetune", "evaluation")}
    together.batches(sizes, sharding.parts(mesh))
    world, asked = World(**config.world, seed=config.seed), config.evaluation
    task = knowledge.task(world, dict(train=0, heldout=asked.dev, test=asked.questions))
    tokenizer = tokenizer_of(world)
    examples = dict(task.splits)
    # What a base text about questions looks like.
    examples["fewshot"] = with_shots(examples["test"], examples["train"], asked.shots, config.seed, between=" ")
    tokenized = partial(tokenize, tokenizer=tokenizer, context=CONTEXT, drop_long=False)
    splits = {name: tokenized(name, rows) for name, rows in examples.items()}
    model = build(shape(config.model, tokenizer.vocab_size), dtype=config.compute_dtype, mesh=mesh)
    members = len(subsets(config, len(splits["train"])))
    trainer = Trainer(model, mesh, clock, FINETUNING, micro_batches=1, members=members) if members else None
    on = Run(tokenizer, model, mesh, clock, config.seed, buckets=(QUESTION, 8, 16, 32, 64, CONTEXT))
    return Ground(world, tokenizer, splits, on, trainer)


def shape(model, vocabulary: int) -> ModelConfig:
    """A small Llama of `model.width` and `model.layers`."""
    D = model.width
    return preset("llama_tiny", V=vocabulary, D=D, L=model.layers, H=D // 4, F=8 * D // 3)


@cache
def tokenizer_of(world: World) -> Tokenizer:
    """One token for each word."""
    words = knowledge.vocabulary(world)
    return SentencePiece(train_tokenizer([" ".join(words)], kind="word", vocab_size=len(words) + 5))


@cache
def base_texts(world: World, count: int, seed: int, asking: bool) -> Tokenized:
    """Tokenized texts of the pretraining mix; shared by the sizes that one process trains."""
    texts = knowledge.texts(world, count, seed, asking)
    return tokenize("base", texts, tokenizer_of(world), context=CONTEXT, drop_long=False)


# ---- Pretraining -----------------------------------------------------------------------------------------------------


def pretrained(config, ground: Ground) -> list[Rung]:
    """The rungs, weakest first; trained once per cache, and continued if a launch was killed.

    Raises:
      UserError: one of them was deleted.
    """
    folder = storage.path(config.cache) / f"rungs-{fingerprint(config, ground)}"
    with lease(folder, wait=True):
        if processes.once(lambda: len(rungs_in(folder))) < len(steps_of(config.pretrain)):
            _pretrain(config, ground, folder)
        found = rungs_in(folder)
    if [rung.step for rung in found] != list(steps_of(config.pretrain)):
        raise UserError(f"{folder}: a rung is missing, and its weights are not kept; remove this folder")
    return found


def rungs_in(folder: Path) -> list[Rung]:
    """The finished rungs of a pretraining."""
    files = [file for file in folder.glob("*.json") if file.stem.isdigit()]
    read = lambda file: sealed.unless_damaged(sealed.read_json, file, folder, "a rung without it is none")
    facts = [found for file in files if (found := read(file))]
    return sorted((Rung(**one, folder=folder / f"rung-{one['step']}") for one in facts), key=lambda rung: rung.step)


def steps_of(settings) -> tuple[int, ...]:
    """The steps of the rungs, evenly spaced in their logarithm."""
    return tuple(sorted({round(step) for step in np.geomspace(settings.first, settings.steps, settings.rungs)}))


def _pretrain(config, ground: Ground, folder: Path) -> None:
    settings, run = config.pretrain, ground.run
    trainer = Trainer(ground.model, ground.mesh, ground.clock, PRETRAINING, micro_batches=1)
    heldout = base_texts(ground.world, settings.loss_texts, HELDOUT_SEED + config.seed, asking=False)
    mix = Split("mix", heldout, knowledge.GRADER)
    measure = Likelihood(mix, run, batch=settings.batch)
    flops = 6 * ground.model.config.parameters * settings.batch * CONTEXT  # of an update

    def keep(step: int, trained: Weights) -> dict[str, float]:
        params = trained[""]()
        with ground.clock("score"):
            parts = [part.columns for part in measure.measure(params, step)]
        nll, tokens = (np.concatenate([columns[name] for columns in parts]) for name in ("target_nll", "target_tokens"))
        loss = float(np.sum(nll.astype(float) * tokens) / np.sum(tokens))
        with ground.clock("export"), progress.quiet():
            export(folder / f"rung-{step}", params, ground)
        rung = dict(step=step, loss=loss, flops=float(flops * step), weights=digest(params))
        processes.once(lambda: sealed.write_json(folder / f"{step}.json", rung))
        return {"heldout_loss": loss}

    def batches(start: int, stop: int):
        texts = base_texts(ground.world, settings.steps * settings.batch, config.seed, asking=True)
        packing = Packing(here=partial(sharding.places_here, ground.mesh))
        options = dict(batch=settings.batch, seed=config.seed, buckets=(CONTEXT,), packing=packing)
        return train_batches(texts, start, stop, **options)

    Phase(
        name=f"width {config.model.width}",
        folder=folder,
        trainer=trainer,
        steps=settings.steps,
        batches=batches,
        rate=partial(constant_rate, peak=settings.learning_rate, warmup_steps=settings.warmup_steps),
        save_every=max(settings.steps // 4, 1),
        keep=1,
        log_every=config.log_every,
        evaluate=keep,
        evaluation_steps=steps_of(settings),
    ).run(lambda: trainer.random_parameters(config.seed))


def export(folder: Path, params, ground: Ground) -> None:
    """Writes weights and tokenizer as a Hugging Face folder, unless a killed launch did so."""
    if processes.once(folder.exists):
        return
    tokenizer, shape = ground.tokenizer, ground.model.config
    markers = dict(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    files, description = tokenizer_export.files(tokenizer), to_hf_config(shape) | markers
    save(folder, params, shape, ground.mesh, description=description, files=files)


def fingerprint(config, ground: Ground) -> str:
    """Digest of everything that a pretraining depends on."""
    parts = dict(
        model=repr(ground.model.config),
        dtype=str(ground.model.dtype),
        world=dataclasses.asdict(ground.world),
        pretrain=config.pretrain.to_dict(),
        optimizer=PRETRAINING,
        seed=config.seed,
        texts=[text.target for text in knowledge.texts(ground.world, 64, config.seed)],  # of the generator as it is
        kept=[field.name for field in dataclasses.fields(Rung)],
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


# ---- A rung ----------------------------------------------------------------------------------------------------------


def climbed(config, folder: Path, ground: Ground, rung: Rung) -> list[dict]:
    """The table's rows of one rung, made unless they are there."""
    path = folder / "rows.json"
    found = processes.once(lambda: sealed.unless_damaged(sealed.read_json, path, folder, "it is made again"))
    if not found:
        rows = planted(config, ground, rung) if config.planted else measured(config, folder, ground, rung)
        about = {"loss": rung.loss, "flops": rung.flops, "model": f"{config.model.width}@{rung.step}"}
        found = {"rows": [about | row for row in rows]}
        processes.once(lambda: sealed.write_json(path, found))
        processes.once(lambda: forget(folder / "finetunes" / "checkpoints"))
        few, *others = [row["accuracy"] for row in found["rows"]]
        best = f", finetuned up to {max(others):.3f}" if others else ""
        progress.say(f"{about['model']}: loss {rung.loss:.3f}, few-shot {few:.3f}{best}")
    return found["rows"]


def forget(folder: Path) -> None:
    """Removes a folder, where there is one."""
    if folder.exists():
        folder.rmtree()


def subsets(config, available: int) -> dict[str, tuple[int, int]]:
    """(amount, subset) of each finetune of a rung, by its name; the full set has only one subset."""
    asked = config.finetune
    return {
        f"{amount}-{k}": (amount, k)
        for amount in asked.amounts
        for k in range(asked.subsets if amount < available else 1)
    }


def planted(config, ground: Ground, rung: Rung) -> list[dict]:
    """Rows as if `config.planted` were the law: right answers are drawn at its accuracies, at the rung's real loss."""
    elbow, largest, alpha, slope, floor = config.planted
    shots = config.evaluation.shots
    most = max(config.finetune.amounts, default=shots + 1)
    law = Law("log_power_law", shots, most, elbow, largest, alpha, slope, floor, floor)
    items = len(ground.splits["test"])
    rng = np.random.default_rng([config.seed, config.model.width, rung.step])
    every = [(0, 0), *subsets(config, len(ground.splits["train"])).values()]
    drawn = [rng.binomial(items, np.clip(law.accuracy(rung.loss, amount), 0, 1)) for amount, _ in every]
    return [
        dict(amount=amount, subset=str(k), accuracy=right / items, items=items)
        for (amount, k), right in zip(every, drawn, strict=True)
    ]


def measured(config, folder: Path, ground: Ground, rung: Rung) -> list[dict]:
    """Few-shot accuracy of a rung, and accuracy after each finetune, at the step that is best on `heldout`."""
    with ground.clock("load"):
        params = weights_of(rung, ground.mesh)
    few = suite(config, ground, folder / "fewshot", ("fewshot",), 0, ())
    few.run(0, {"": lambda: params})
    rows = [row_of(read_trace(folder / "fewshot" / "trace").split("fewshot"), 0, 0, 0)]
    if asked := subsets(config, len(ground.splits["train"])):
        finetune(config, folder / "finetunes", ground, params, asked)
    for name, (amount, k) in asked.items():
        trace = read_trace(folder / "finetunes" / "trace", member=name)
        best = int(np.argmax(trace.split("heldout").accuracy.mean(axis=1)))
        rows.append(row_of(trace.split("test"), best, amount, k))
    return rows


def weights_of(rung: Rung, mesh) -> dict:
    """The weights of a rung.

    Raises:
      UserError: they are not those that were kept.
    """
    params = hugging_face.load(Checkpoint(rung.folder), mesh)
    if digest(params) != rung.weights:
        raise UserError(f"{rung.folder} is damaged: the weights are others; remove {rung.folder.parent}")
    return params


def digest(params) -> str:
    """A digest of the values of all weights."""
    return materials.digest(materials.of_arrays(params))


def row_of(split: SplitTrace, at: int, amount: int, subset: int) -> dict:
    """A row of the table from one evaluation; the pass rate is that of samples at temperature 1."""
    log_p = -split.nll[at].astype(float) * split.tokens
    numbers = dict(gold_logprob=float(np.mean(log_p)), pass_rate=float(np.mean(np.exp(log_p))))
    accuracy = float(split.accuracy[at].mean())
    return dict(amount=amount, subset=str(subset), accuracy=accuracy, items=len(split.example)) | numbers


def finetune(config, folder: Path, ground: Ground, params, asked: Mapping[str, tuple[int, int]]) -> None:
    """Trains the finetunes of a rung as one stack; their traces in `folder` have `heldout` and `test` on the way."""
    settings, train, trainer = config.finetune, ground.splits["train"], ground.trainer
    packing = Packing(here=partial(sharding.places_here, ground.mesh))
    order = dict(batch=settings.batch, buckets=(QUESTION + 1,), packing=packing)

    def source(amount: int, k: int):
        rows = np.random.default_rng([config.seed, *b"subset", amount, k]).permutation(len(train))[:amount]
        pick = lambda column: [column[row] for row in rows]
        data = Tokenized(pick(train.examples), pick(train.prompts), pick(train.targets))
        return partial(train_batches, data, seed=config.seed + k, **order)

    looks = [settings.steps // 2**i for i in range(settings.looks)]
    watched = suite(config, ground, folder, ("heldout", "test"), settings.steps, looks)
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

    options = dict(type="exact_match", epochs=tuple(sorted(looks)), batch=config.evaluation.batch)
    evals = {name: options | {"split": name} for name in names}
    return Suite(evals, {name: answers(name) for name in names}, ground.run, 1, steps, folder)
