"""Plan preference training for absent TPUs, as `plan` does a finetune."""

from premem_jax.experiments.plan import run

__all__ = ["run"]
