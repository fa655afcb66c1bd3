"""What several experiments ask of their configs before any work starts; each raises UserError and names the key."""

from collections.abc import Iterable, Mapping

from premem_jax import sharding
from premem_jax.errors import UserError


def counts(groups: Mapping[str, Mapping], keys: Iterable[str]) -> None:
    """Of each group of settings, those in `keys` are at least 1."""
    for group, options in groups.items():
        for key in [key for key in keys if key in options]:
            if isinstance(options[key], int) and options[key] < 1:
                raise UserError(f"{group}.{key}={options[key]}: must be at least 1")


def batches(sizes: Mapping[str, float], mesh) -> None:
    """Each batch divides over the mesh."""
    parts = sharding.rows(mesh)
    for name, size in sizes.items():
        if size % parts:
            raise UserError(f"{name} = {size:g} does not divide over the {parts} parts of the mesh (data x fsdp)")


def dtype(key: str, name: str) -> None:
    """A dtype to compute or store in."""
    if name not in ("float32", "bfloat16"):
        raise UserError(f"{key}={name!r}: choose float32 or bfloat16")
