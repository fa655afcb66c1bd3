"""Checks of a config against its data and mesh, before anything is compiled; `keys` checks the config alone."""

from collections.abc import Mapping, Sized

from premem_jax import sharding, together
from premem_jax.errors import UserError
from premem_jax.tasks.task import Task


def finetune(config, mesh, task: Task, splits: Mapping[str, Sized]) -> None:
    """Raises UserError if mesh or data do not fit the config of a finetune; `splits` are tokenized."""
    decode_mesh = sharding.decode_mesh(mesh, config.mesh.decode_tensor)
    together.on_mesh(config, sharding.parts(mesh), sharding.parts(decode_mesh))
    steps = config.base.steps
    if steps and task.base_texts is None:
        raise UserError(f"base.steps={steps}: task {config.data.task!r} has no base texts; set base.steps=0")
    for name, options in config.evals.items():
        if options.split not in splits:
            raise UserError(f"evals.{name}.split={options.split!r}: there is {', '.join(splits)}")
    split = config.threshold.split
    if together.quantile_wanted(config) and len(splits[split]) < together.MIN_HELDOUT:
        raise UserError(together.few(split, len(splits[split])))
