"""What a step of decoding costs on TPUs by XLA's own estimate; compiled for them, needs none.

    python -m benchmarks.decode_cycles [--model=llama3_8b] [--topology=v5e:2x4] [--tensor=8]

Prints millions of cycles by kind of operation, without collectives, and in how many a device reads its weights and its
caches once. The estimate is for comparing two ways to write the same: trust no absolute time.
"""

import argparse
import math
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp

from premem_jax import sharding
from premem_jax.models.config import preset
from premem_jax.models.decoder import build, init, unstack
from premem_jax.planning.topology import devices, topology
from premem_jax.sampling.sampler import sample

CLOCK = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}  # per second: their peak over what one cycle can do


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama3_8b")
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--tensor", type=int, default=8, help="devices that share the weights")
    for name, size in dict(prompts=64, samples=4, prompt_tokens=256, new_tokens=128).items():
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    place, config = topology(options.topology), preset(options.model)
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, tensor=options.tensor), devices(place))
    model = build(config, dtype="bfloat16", mesh=mesh)
    params = jax.eval_shape(lambda: unstack(init(config, jax.random.key(0))))
    params = sharding.abstract(mesh, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype), params))
    weights = sum(2 * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(params))
    slots = options.prompts * (options.prompt_tokens + options.samples * options.new_tokens)
    caches = 2 * 2 * slots * config.L * config.K * config.H / mesh.size
    integers = lambda *shape: sharding.abstract_batch(mesh, (options.prompts, *shape), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    settings = dict(samples=options.samples, max_new_tokens=options.new_tokens, temperature=0.8, top_p=1.0, eos_id=0)
    program = jax.jit(partial(sample, model, **settings))
    lowered = program.trace(params, integers(options.prompt_tokens), integers(), integers(), key).lower(
        lowering_platforms=("tpu",)
    )
    kinds = cycles(lowered.compile().as_text())
    for kind, count in kinds.most_common(12):
        print(f"{count / 1e6:8.2f}  {kind}")
    least = (weights + caches) / place.chip.hbm_bandwidth * CLOCK[options.topology.partition(":")[0]]
    print(f"{kinds.total() / 1e6:8.2f}  together")
    print(f"{least / 1e6:8.2f}  to read {weights / 1e9:.2f} GB of weights and {caches / 1e9:.2f} GB of caches")


def cycles(text: str) -> Counter:
    """Estimated cycles in the body of the one loop of a compiled program, by the operation that they come from."""
    body = re.search(r"body=%?([\w.\-]+)", text).group(1)
    lines = re.search(rf"^%?{re.escape(body)} [^\n]*\{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL).group(1)
    found = Counter()
    for line in lines.splitlines():
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
            name = re.search(r'op_name="([^"]*)"', line)
            found["/".join(name.group(1).split("/")[-2:]) if name else "other"] += int(estimate.group(1))
    return found


if __name__ == "__main__":
    main()
