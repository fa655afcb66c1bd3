"""The base model of a finetune: read from a folder, random, or trained once on the task's base texts and cached."""

import contextlib
import hashlib
import json

from etils.epath import Path

from premem_jax import processes, sharding, storage
from premem_jax.data.pipeline import tokenize, train_batches
from premem_jax.data.tasks import Task
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.lease import lease
from premem_jax.models.decoder import Model
from premem_jax.models.hf_files import Checkpoint
from premem_jax.programs import Clock
from premem_jax.training.checkpoints import Checkpoints, finished
from premem_jax.training.loop import fit
from premem_jax.training.metrics import Metrics
from premem_jax.training.optimizer import learning_rate
from premem_jax.training.trainer import Trainer

OPTIMIZER = dict(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.05, clip_norm=1.0)


def base_parameters(
    config, model: Model, checkpoint: Checkpoint | None, task: Task, tokenizer: Tokenizer, mesh, clock: Clock
):
    """Parameters to finetune from. A base phase continues where it was killed, and is trained once per cache.

    Raises:
      UserError: a base phase is asked of a task that has no base texts, or of weights that are read.
    """
    base = config.base
    if checkpoint is not None:
        if base.steps:
            raise UserError(f"base.steps={base.steps}: the weights of model.path are the base model; set base.steps=0")
        with clock("load"):
            return checkpoint.load(mesh)
    trainer = Trainer(model, mesh, clock, OPTIMIZER, micro_batches=1)
    if not base.steps:
        return trainer.random_parameters(config.seed)
    if task.base_texts is None:
        raise UserError(f"base.steps={base.steps}: task {config.data.task!r} has no base texts; set base.steps=0")

    folder = storage.path(config.cache) / f"base-{_fingerprint(config, model, tokenizer)}"
    there = processes.once(lambda: base.steps in finished(folder / "checkpoints"))
    with contextlib.nullcontext() if there else lease(folder, wait=True):
        return _trained(config, trainer, task, tokenizer, mesh, clock, folder)


def _trained(config, trainer: Trainer, task: Task, tokenizer: Tokenizer, mesh, clock: Clock, folder: Path):
    base = config.base
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    state = checkpoints.restore(mesh, trainer.abstract_state)
    if state is None:
        state = trainer.init_state(trainer.random_parameters(config.seed))
    start = int(state["step"])
    if start < base.steps:
        texts = task.base_texts(base.steps * base.batch, config.seed)
        data = tokenize("base", texts, tokenizer, context=config.data.context, drop_long=config.data.drop_long)
        metrics = Metrics(folder, start)
        schedule = dict(peak=base.learning_rate, warmup_steps=base.warmup_steps, steps=base.steps)
        state = fit(
            state,
            base.steps,
            name="base model",
            program=trainer.program,
            batches=train_batches(
                data,
                batch=base.batch,
                seed=config.seed,
                buckets=config.data.buckets,
                start=start,
                stop=base.steps,
                prompt_weight=base.prompt_weight,
                here=sharding.rows_here(mesh, base.batch),
            ),
            rate=lambda step: learning_rate(step, **schedule),
            mesh=mesh,
            clock=clock,
            checkpoints=checkpoints,
            save_every=config.checkpoint.every,
            metrics=metrics,
            log_every=config.log_every,
        )
        metrics.close()
    with clock("checkpoint"):
        checkpoints.wait()
        checkpoints.close()
    return state["params"]


def _fingerprint(config, model: Model, tokenizer: Tokenizer) -> str:
    """Names everything the base parameters depend on."""
    parts = dict(
        model=repr(model.config),
        dtype=str(model.dtype),
        base=config.base.to_dict(),
        optimizer=OPTIMIZER,
        task=config.data.task,
        context=config.data.context,
        seed=config.seed,
        tokenizer=hashlib.sha256(tokenizer.model).hexdigest(),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
