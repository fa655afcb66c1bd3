"""What is set once per process before any work: logging, the compilation cache."""

import logging
import warnings

import jax

from premem_jax import storage


def prepare(cache: str) -> None:
    """Keeps compiled programs under `cache`, an absolute path, and other libraries' chatter out of the output."""
    # By force, since absl has put its own handler there.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs a traceback of what it then raises to us anyway
    warnings.filterwarnings("ignore", module="orbax")
    jax.config.update("jax_compilation_cache_dir", f"{cache}/programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if storage.in_bucket(cache):  # JAX writes there, but what XLA keeps for GPUs wants a disk
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
