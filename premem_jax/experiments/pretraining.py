"""The models of a ladder of emergence: one size, pretrained on the texts of a world, and its checkpoints, the rungs.

The learning rate is constant after warm-up, so each rung is a model of its own. It is kept as a Hugging Face folder in
the cache, and pretraining is done once for all settings of the finetunes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
from etils.epath import Path

from premem_jax import sharding, together
from premem_jax.data import tokenizer_export
from premem_jax.data.fewshot import with_shots
from premem_jax.data.packing import Packing
from premem_jax.data.pipeline import Tokenized, tokenize
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizer_files import train as train_tokenizer
from premem_jax.data.tokenizer_kinds import SentencePiece
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.run import Run
from premem_jax.experiments import hugging_face, materials
from premem_jax.experiments.rung_rows import token_loss
from premem_jax.models.architecture import ModelConfig, preset
from premem_jax.models.decoder import Model, build
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import Checkpoint, save
from premem_jax.running import processes, progress, sealed, storage
from premem_jax.running.lease import lease
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

    @property
    def clock(self) -> Clock:
        return self.run.clock

    @property
    def model(self) -> Model:
        return self.run.model

    @property
    def mesh(self):
        return self.run.mesh


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
    on = Run(tokenizer, model, mesh, clock, config.seed, buckets=(QUESTION, 8, 16, 32, 64, CONTEXT))
    return Ground(world, tokenizer, splits, on)


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
            loss = token_loss(measure.measure(params, step))
        with ground.clock("export"), progress.quiet():
            export(folder / f"rung-{step}", params, ground)
        rung = dict(step=step, loss=loss, flops=float(flops * step), weights=digest(params))
        processes.once(lambda: sealed.write_json(folder / f"{step}.json", rung))
        return {"heldout_loss": loss}

    def batches(start: int, stop: int):
        texts = base_texts(ground.world, settings.steps * settings.batch, config.seed, asking=True)
        packing = Packing.on(ground.mesh)
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
