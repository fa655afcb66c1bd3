"""Settings made once per process before any work: logging, JAX flags, the compilation cache."""

import logging
import os
import warnings

import jax

from premem_jax.errors import UserError
from premem_jax.running import storage

# Flags that change results and that the environment or a site's own files could set.
NUMERICS = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_custom_prng": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_check_tracer_leaks": False,
    "jax_transfer_guard": "allow",
}


def require_devices() -> None:
    """Raises UserError if the platform named by the environment is not available."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of JAX; the latter without a message
        why = " ".join(str(error).split())[:300] or "JAX has none"
        raise UserError(
            f"no devices to run on ({why}); JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: "
            "unset it, set it to cpu, or install JAX for this accelerator"
        ) from error


def prepare(cache: str) -> None:
    """Sets all flags that change results, whatever the environment says, and silences other libraries.

    Args:
      cache: absolute path of the compilation cache.
    """
    for name, value in NUMERICS.items():
        jax.config.update(name, value)
    os.environ["MPLBACKEND"] = "agg"  # another, as of a notebook, may be unknown here: the report would fail at the end
    # force, because absl has installed its own handler
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs a traceback of what it then raises to us anyway
    warnings.filterwarnings("ignore", module="orbax")
    jax.config.update("jax_compilation_cache_dir", f"{cache}/programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if storage.in_bucket(cache):  # JAX writes there, but what XLA keeps for GPUs wants a disk
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
