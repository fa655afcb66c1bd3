"""Additional training examples: a file that is trained on together with the split `train`.

They are the split `added` of a run. Only the task's own training examples are evaluated, so values before and after an
addition are of the same examples.
"""

import json
from collections.abc import Sequence

from etils.epath import Path

from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.running import sealed

SPLIT = "added"


def write(path: Path, examples: Sequence[Example]) -> None:
    """Writes examples, sealed; their ids are their rows."""
    sealed.write(path, "".join(json.dumps(example.row) + "\n" for example in examples).encode())


def read(path: Path) -> list[Example]:
    """The examples given to `write`.

    Raises:
      UserError: no such file, or the checksum does not match.
    """
    try:
        lines = sealed.read(path).decode().splitlines()
    except FileNotFoundError as error:
        raise UserError(f"data.added={path}: there is no such file") from error
    except sealed.Damaged as error:
        mend = "in a curation, remove members/NAME and runs/NAME of its member, and the next launch makes both again"
        raise sealed.Damaged(error.what, mend) from error
    return [Example.of_row(json.loads(line)) for line in lines]
