"""The base model of a finetune: loaded from a folder, random, or trained once on the task's base texts and cached."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import partial

from etils.epath import Path

from premem_jax import sharding
from premem_jax.data.pipeline import tokenize
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.experiments import hugging_face, materials
from premem_jax.models.decoder import Model
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import processes, storage
from premem_jax.running.lease import lease
from premem_jax.running.programs import Clock
from premem_jax.tasks.task import Task
from premem_jax.training.checkpoints import finished
from premem_jax.training.optimizer import learning_rate
from premem_jax.training.phase import Batch, Phase
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer

SAMPLED = 256  # base texts of which the name of a base model is made
OPTIMIZER = dict(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.05, clip_norm=1.0)


def base_parameters(
    config,
    model: Model,
    checkpoint: Checkpoint | None,
    task: Task,
    tokenizer: Tokenizer,
    mesh,
    clock: Clock,
    run: Path,
):
    """Parameters to finetune from. A killed base phase continues; a base model is trained once per cache.

    Weights from a folder must have the values that they had when the run in `run` first read them.
    """
    base = config.base
    if checkpoint is not None:
        with clock("load"):
            params = hugging_face.load(checkpoint, mesh)
            materials.claim(run, materials.of_arrays(params))
            return params
    trainer = Trainer(model, mesh, clock, OPTIMIZER, micro_batches=1)
    if not base.steps:
        return trainer.random_parameters(config.seed)
    folder = storage.path(config.cache) / f"base-{_fingerprint(config, model, task, tokenizer)}"
    there = processes.once(lambda: base.steps in finished(folder / "checkpoints"))
    with contextlib.nullcontext() if there else lease(folder, wait=True):
        phase = _phase(config, trainer, task, tokenizer, folder)
        return weights(phase.run(lambda: trainer.random_parameters(config.seed)))


def _phase(config, trainer: Trainer, task: Task, tokenizer: Tokenizer, folder: Path) -> Phase:
    base = config.base

    def batches(start: int, stop: int) -> Iterator[Batch]:
        if start == stop:  # a base model that is there needs no texts
            return iter(())
        texts = task.base_texts(base.steps * base.batch, config.seed)
        return train_batches(
            tokenize("base", texts, tokenizer, context=config.data.context, drop_long=config.data.drop_long),
            start,
            stop,
            batch=base.batch,
            seed=config.seed,
            buckets=config.data.buckets,
            prompt_weight=base.prompt_weight,
            here=sharding.places_here(trainer.mesh, base.batch),
        )

    return Phase(
        name="base model",
        folder=folder,
        trainer=trainer,
        steps=base.steps,
        batches=batches,
        rate=partial(learning_rate, peak=base.learning_rate, warmup_steps=base.warmup_steps, steps=base.steps),
        save_every=config.checkpoint.every,
        keep=1,
        log_every=config.log_every,
    )


def _fingerprint(config, model: Model, task: Task, tokenizer: Tokenizer) -> str:
    """Digest of everything that the base parameters depend on."""
    parts = dict(
        model=repr(model.config),
        dtype=str(model.dtype),
        base=config.base.to_dict(),
        optimizer=OPTIMIZER,
        task=config.data.task,
        context=config.data.context,
        seed=config.seed,
        tokenizer=tokenizer.checksum,
        texts=materials.of_examples({"base": task.base_texts(SAMPLED, config.seed)}),  # of the generator as it is now
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
