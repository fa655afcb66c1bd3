"""The inputs of a run: it records data, tokenizer and weights at its start, and refuses others afterwards."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils.epath import Path

from premem_jax import sharding
from premem_jax.data.examples import Example
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.grading import named
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import processes, sealed, workdir
from premem_jax.training.checkpoints import checksums

FILE = "materials.json"


def claim(folder: Path, facts: Mapping[str, str]) -> None:
    """Records digests in `folder/materials.json`, or compares them with those of the run's start.

    A run without results may start with others. A damaged file is written again.

    Args:
      facts: name of each input → its digest, the same in all processes.

    Raises:
      UserError: in all processes, naming what differs: from the start of the run, or between processes.
    """
    processes.agree(facts)
    processes.once(lambda: _claim(folder, facts))


def _claim(folder: Path, facts: Mapping[str, str]) -> None:
    known = sealed.unless_damaged(sealed.read_json, folder / FILE, folder, "it is made again from what is here") or {}
    differ = [name for name in facts if known.get(name, facts[name]) != facts[name]]
    if differ and workdir.begun(folder):
        raise UserError(
            f"{folder} was begun with other {' and other '.join(differ)}; restore what it was begun with, or use "
            "another --workdir"
        )
    if differ or facts.keys() - known.keys():
        sealed.write_json(folder / FILE, known | dict(facts))


def of_examples(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """A digest of all fields of the examples, by split."""
    return {
        f"data (split {name}, {len(examples)} examples)": digest([example.row for example in examples])
        for name, examples in splits.items()
    }


def of_grader(name: str) -> dict[str, str]:
    """A digest of the file of a python grader; nothing for the others, which are our own code."""
    code = named.code(name)
    return {"grader (its file)": hashlib.sha256(code).hexdigest()} if code else {}


def of_tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    return {"tokenizer": tokenizer.checksum}


def of_folder(checkpoint: Checkpoint | None) -> dict[str, str]:
    """A digest of a model folder without its arrays: names, sizes and headers of its files."""
    if checkpoint is None:
        return {}
    return {
        f"weights ({checkpoint.folder.name}: files and headers)": digest([checkpoint.headers(), checkpoint.eos_ids])
    }


def of_arrays(params) -> dict[str, str]:
    """A digest of the values of all weights, the same on every mesh."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    sums = jax.jit(checksums, out_shardings=sharding.replicated(mesh))(params)
    named = [(jax.tree_util.keystr(path), int(np.asarray(x))) for path, x in jax.tree_util.tree_leaves_with_path(sums)]
    return {"weights (their values)": digest(named)}


def digest(value) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
