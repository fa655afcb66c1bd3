"""What preference training begins from: the reference's log-likelihoods of all pairs, and how alike a pair is to it."""

import io
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from etils.epath import Path

from premem_jax import sharding
from premem_jax.data.packing import Packing
from premem_jax.data.pairs import collate_pairs, pair_lengths
from premem_jax.data.pipeline import Tokenized
from premem_jax.errors import NonFinite
from premem_jax.experiments import materials
from premem_jax.experiments.finetune import Ready
from premem_jax.running import processes, sealed
from premem_jax.running.programs import Clock, Program
from premem_jax.training.measures import pair_measures

log = logging.getLogger(__name__)

FILE = "reference.npz"


class Reference(NamedTuple):
    """Of each of E pairs, under the weights that preference training begins with."""

    log_likelihood: np.ndarray  # (E, 2) fp32 nats, of the chosen and of the rejected response
    ches: np.ndarray  # (E,) fp32, see `pair_measures`


def measured(
    config, folder: Path, clock: Clock, made: Ready, data: Tokenized, start: Callable[[], dict], file: str = FILE
) -> Reference:
    """Measures the pairs of `data`, in one pass over them.

    The result is cached in `folder/file`, which names data and tokenizer. The run records a digest of the reference
    weights, so that a lost file can only be recomputed with the same ones.

    Args:
      start: makes the reference weights; called only if there is no intact file.

    Raises:
      UserError: the run was started with other reference weights.
    """
    path = folder / file
    of = materials.of_examples({"train": data.examples}) | materials.of_tokenizer(made.tokenizer)
    whole = lambda: sealed.unless_damaged(sealed.read, path, folder, "it is made again") is not None
    found = _read(path, of, len(data)) if processes.once(whole) else None
    if processes.all_agree(found is not None):
        return found
    params = start()
    materials.claim(folder, {f"reference {name}": digest for name, digest in materials.of_arrays(params).items()})
    with clock("score"):
        made_here = _measure(config, clock, made, data, params)
    if not all(np.isfinite(values).all() for values in made_here):
        raise NonFinite("the log-likelihood of a response under the reference is not finite; look at the first weights")
    processes.once(lambda: _write(path, of, made_here))
    return made_here


def _measure(config, clock: Clock, made: Ready, data: Tokenized, params) -> Reference:
    batch, mesh = config.train.batch, made.mesh
    program = Program(partial(pair_measures, made.model), clock, out_shardings=sharding.replicated(mesh))
    found = Reference(np.zeros((len(data), 2), np.float32), np.zeros(len(data), np.float32))
    lengths, packing = pair_lengths(data), Packing.on(mesh)
    order = np.argsort(lengths, kind="stable")
    for rows in (order[first : first + batch] for first in range(0, len(order), batch)):
        arrays = collate_pairs(data, rows, batch=batch, buckets=config.data.buckets, packing=packing)
        placed = sharding.put_batch(mesh, arrays, here=True)
        for values, made_here in zip(found, program(params, placed["tokens"], placed["weights"]), strict=True):
            values[rows] = np.asarray(made_here)[: len(rows)]
    return found


def _write(path: Path, facts: dict[str, str], found: Reference) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **found._asdict(), facts=materials.digest(facts))
    sealed.write(path, buffer.getvalue())


def _read(path: Path, facts: dict[str, str], examples: int) -> Reference | None:
    try:
        with np.load(io.BytesIO(sealed.read(path)), allow_pickle=False) as arrays:
            found = Reference(*(arrays[name] for name in Reference._fields))
            if str(arrays["facts"]) == materials.digest(facts) and found.log_likelihood.shape == (examples, 2):
                return found
        log.warning("%s is of other data or another tokenizer; it is made again", path)
    except (sealed.Damaged, OSError, ValueError, KeyError) as error:
        log.warning("%s cannot be used (%s); it is made again", path, error)
    return None
