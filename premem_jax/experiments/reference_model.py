"""Reference log-likelihoods of a preference run, under its initial weights, computed once."""

import io
import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax import sharding
from premem_jax.data.pairs import answers
from premem_jax.data.pipeline import Tokenized, evaluation_batches
from premem_jax.errors import NonFinite
from premem_jax.experiments import materials
from premem_jax.experiments.finetune import Ready
from premem_jax.models.nll import log_likelihood
from premem_jax.running import processes, sealed
from premem_jax.running.programs import Clock, Program

log = logging.getLogger(__name__)

FILE = "reference.npz"


def log_likelihoods(config, folder: Path, clock: Clock, made: Ready, start: Callable[[], dict]) -> np.ndarray:
    """Log-likelihoods (E, 2), fp32 nats, of the chosen and the rejected response of each training pair.

    They are cached in `folder/reference.npz`, which names data and tokenizer. The run records a digest of the reference
    weights, so that a lost file can only be recomputed with the same ones.

    Args:
      start: makes the reference weights; called only if there is no intact file.

    Raises:
      UserError: the run was started with other reference weights.
    """
    path, data = folder / FILE, made.splits["train"]
    of = materials.of_examples({"train": data.examples}) | materials.of_tokenizer(made.tokenizer)
    whole = lambda: sealed.unless_damaged(sealed.read, path, folder, "it is made again") is not None
    found = _read(path, of, len(data)) if processes.once(whole) else None
    if processes.all_agree(found is not None):
        return found
    params = start()
    materials.claim(folder, {f"reference {name}": digest for name, digest in materials.of_arrays(params).items()})
    with clock("score"):
        made_here = _score(config, clock, made, data, params)
    if not np.isfinite(made_here).all():
        raise NonFinite("the log-likelihood of a response under the reference is not finite; look at the first weights")
    processes.once(lambda: _write(path, of, made_here))
    return made_here


def _score(config, clock: Clock, made: Ready, data: Tokenized, params) -> np.ndarray:
    batch, mesh = config.train.batch, made.mesh
    program = Program(partial(log_likelihood, made.model), clock, out_shardings=sharding.replicated(mesh))
    found, here = np.zeros((len(data), 2), np.float32), sharding.places_here(mesh, batch)
    options = dict(batch=batch, buckets=tuple(config.data.buckets), here=here)
    for r in range(2):
        for rows, arrays in evaluation_batches(answers(data, bool(r)), **options):
            placed = sharding.put_batch(mesh, {key: arrays[key] for key in ("tokens", "weights")}, batch)
            found[rows, r] = np.asarray(program(params, placed["tokens"], placed["weights"]))[: len(rows)]
    return found


def _write(path: Path, facts: dict[str, str], reference: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, reference=reference, facts=materials.digest(facts))
    sealed.write(path, buffer.getvalue())


def _read(path: Path, facts: dict[str, str], examples: int) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(sealed.read(path)), allow_pickle=False) as arrays:
            if str(arrays["facts"]) == materials.digest(facts) and arrays["reference"].shape == (examples, 2):
                return arrays["reference"]
        log.warning("%s is of other data or another tokenizer; it is made again", path)
    except (sealed.Damaged, OSError, ValueError, KeyError) as error:
        log.warning("%s cannot be used (%s); it is made again", path, error)
    return None
