"""How many bytes of each tensor a process reads from checkpoints; and one of two processes that read one together.

python -m tests.models.counted FOLDER PORT NUMBER
"""

import collections
import json
import sys
from pathlib import Path

import jax
from safetensors import safe_open

from premem_jax import sharding
from premem_jax.models import hf_files

READ = collections.Counter()  # bytes by tensor


class Part:
    def __init__(self, name: str, part):
        self.name, self.part = name, part

    def __getitem__(self, index):
        array = self.part[index]
        READ[self.name] += array.nbytes
        return array


class CountedFile:
    """`safe_open`, with a note of what is taken out of the file."""

    def __init__(self, file, framework):
        self.file = safe_open(file, framework=framework)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def get_slice(self, name: str) -> Part:
        return Part(name, self.file.get_slice(name))


def main(folder: Path, port: str, number: str) -> None:
    """Reads its part of the checkpoint, helps to write it again beside it, and prints bytes read, held, and of all."""
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    checkpoint = hf_files.Checkpoint(folder)
    hf_files.safe_open = CountedFile
    mesh = sharding.make_mesh(dict(data=1, fsdp=2, tensor=2))
    leaves = jax.tree.leaves(params := checkpoint.load(mesh))
    held = [{str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards} for leaf in leaves]
    options = dict(description=checkpoint.description, files={}, shard_bytes=20_000)
    hf_files.save(folder.with_name("again"), params, checkpoint.config, mesh, **options)
    print(json.dumps([READ.total(), sum(sum(parts.values()) for parts in held), sum(leaf.nbytes for leaf in leaves)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
