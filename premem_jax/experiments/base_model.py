"""The base model of a finetune: loaded from a folder, random, or trained once on the task's base texts and cached."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import partial

import jax
from etils.epath import Path

from premem_jax import sharding
from premem_jax.data.packing import Packing
from premem_jax.data.pipeline import tokenize
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.experiments import hugging_face, materials
from premem_jax.models import adapters
from premem_jax.models.decoder import Model, init
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import atomic, processes, storage
from premem_jax.running.lease import lease
from premem_jax.running.programs import Clock
from premem_jax.tasks.task import Task
from premem_jax.training.checkpoints import finished
from premem_jax.training.optimizer import learning_rate
from premem_jax.training.phase import Batch, Phase
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer

SAMPLED = 256  # base texts of which the name of a base model is made
ADAPTERS = 1  # folded into the run's seed for their random key
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
    """Parameters to finetune from, with fresh adapters if `model` has any.

    They must have the values that they had when the run in `run` first asked for them.
    """
    plain = model.on(config=dataclasses.replace(model.config, lora=None), mesh=mesh)
    if checkpoint is not None:
        with clock("load"):
            params = hugging_face.load(checkpoint, mesh, "float32" if model.config.lora is None else model.dtype)
    else:
        params = _without_folder(config, plain, task, tokenizer, mesh, clock)
    materials.claim(run, materials.of_arrays(params))
    return params if model.config.lora is None else _with_adapters(params, model, mesh, clock, config.seed)


def _with_adapters(params, model: Model, mesh, clock: Clock, seed: int) -> dict:
    """`params`, frozen and in the compute dtype, with adapters that add nothing yet."""

    def begin(params, key):
        fresh, _ = adapters.split(init(model.config, key))
        return adapters.frozen_in(model.dtype, adapters.join(fresh, params))

    key = sharding.random_key(mesh, seed, ADAPTERS)
    with clock("compile"):
        layout = sharding.shardings(mesh, jax.eval_shape(begin, params, key))
        return jax.jit(begin, out_shardings=layout, donate_argnums=0)(params, key)


def _without_folder(config, model: Model, task: Task, tokenizer: Tokenizer, mesh, clock: Clock) -> dict:
    """Random parameters, or the base model: a killed base phase continues, and one is trained once per cache."""
    base = config.base
    trainer = Trainer(model, mesh, clock, OPTIMIZER, micro_batches=1)
    if not base.steps:
        return trainer.random_parameters(config.seed)
    folder = storage.path(config.cache) / f"base-{_fingerprint(config, model, task, tokenizer)}"
    there = processes.once(lambda: base.steps in finished(folder / "checkpoints"))
    with contextlib.nullcontext() if there else lease(folder, wait=True):
        if not there:
            processes.once(lambda: atomic.remove_leftovers(folder))
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
            packing=Packing.on(trainer.mesh),
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
