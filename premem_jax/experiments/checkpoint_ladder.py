"""A ladder of emergence of anybody's checkpoints: as `experiments/ladder.py`, of models that others pretrained."""

from etils.epath import Path

from premem_jax import keys
from premem_jax.experiments import ladder
from premem_jax.members import config_of, members_of
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import processes


def run(config, folder: Path) -> dict | None:
    """Makes or continues the rows of all checkpoints, the forecast before the strong ones, and the verdict.

    Raises:
      UserError: as the members do; a folder that is no model, before the first one is loaded.
    """
    keys.check(config)
    processes.once(lambda: [str(Checkpoint(path).folder) for path in paths(config)])
    return ladder.run(config, folder)


def paths(config) -> list[str]:
    """The folders of the models."""
    return [config_of(config, member).model.path for member in members_of(config).values()]
