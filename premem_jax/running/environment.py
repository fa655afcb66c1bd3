"""Environment variables that would crash JAX or XLA, checked first."""

import os
import subprocess
import sys

from premem_jax.errors import UserError

_PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"  # XLA reads its flags, and aborts on a mistake


def whole(name: str, given: int | None = None, default: int | None = None) -> int | None:
    """`given` if it is a number, else the whole number in a variable, or the default where that is unset or empty.

    Raises a UserError for a variable that holds anything else.
    """
    text = os.environ.get(name, "")
    try:
        return given if given is not None else int(text) if text else default
    except ValueError as error:
        raise UserError(f"the environment has {name}={text[:80]!r}: it must be a whole number") from error


def check() -> None:
    """Imports JAX. Raises UserError for a variable that JAX or XLA cannot read."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UserError(f"JAX cannot read the environment ({error}); correct the variable, or unset it") from error
    if given := os.environ.get("XLA_FLAGS"):
        tried = subprocess.run([sys.executable, "-c", _PARSE], capture_output=True, text=True, errors="replace")
        if tried.returncode:
            why = (tried.stderr.strip().splitlines() or ["no reason given"])[-1].rpartition("] ")[2]
            raise UserError(
                f"XLA cannot read XLA_FLAGS={given[:200]!r} ({why[:200]}); correct the variable, or unset it"
            )
