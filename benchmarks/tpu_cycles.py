"""Cost of a step on TPUs by XLA's estimate; needs no TPU.

    python -m benchmarks.tpu_cycles [--model=llama3_8b] [--topology=v5e:2x4] [--tensor=8]
    python -m benchmarks.tpu_cycles --program=train --topology=v5e:4x4 --tensor=1

A step is a decode step, an update, or a scored batch, with the settings of the paper. Prints millions of cycles by kind
of operation without collectives, a lower bound (reading weights and caches of a device once, or the products at peak
speed), and the peak memory. Use the estimate only to compare two versions of a program, not as absolute time.
"""

import argparse
import math
import re
from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp

from configs import llama3_8b_gsm8k
from premem_jax import sharding
from premem_jax.models.architecture import ModelConfig, preset
from premem_jax.models.decoder import build, init, unstack
from premem_jax.planning import lowered as programs
from premem_jax.running.topology import devices, topology
from premem_jax.sampling.sampler import sample

CLOCK = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}  # per second: their peak over what one cycle can do
PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 64, 4, 256, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="decode", choices=["decode", "train", "score"])
    parser.add_argument("--model", default="llama3_8b")
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--tensor", type=int, default=8, help="devices that share the weights while they compute")
    options = parser.parse_args()
    place = topology(options.topology)
    axes = dict(data=-1, fsdp=1) if options.program == "decode" else dict(data=1, fsdp=-1)
    mesh = sharding.make_mesh(axes | dict(tensor=options.tensor), devices(place))
    if options.program == "decode":
        lowered, seconds = decode(preset(options.model), mesh, place.chip)
    else:
        config = llama3_8b_gsm8k.get_config(model=options.model)
        config.train.packed_tokens = ()  # `padding` has updates whose examples share rows
        lowered, _ = programs.lower(config, mesh, options.program)
        seconds = programs.cost(config, place, mesh, options.program).flops / place.chips / place.chip.flops
    compiled = lowered.compile()
    found = cycles(compiled.as_text(), of_loop=options.program == "decode")
    for kind, count in found.most_common(12):
        print(f"{count / 1e6:8.2f}  {kind}")
    print(f"{found.total() / 1e6:8.2f}  together")
    print(f"{seconds * CLOCK[options.topology.partition(':')[0]] / 1e6:8.2f}  at the least")
    print(f"{compiled.memory_analysis().peak_memory_in_bytes / 1e9:8.2f}  GB at the peak")


def decode(config: ModelConfig, mesh, chip) -> tuple[jax.stages.Lowered, float]:
    """The sampling program, and the seconds in which a device reads its weights and its caches once."""
    model = build(config, dtype="bfloat16", mesh=mesh)
    params = jax.eval_shape(lambda: unstack(init(config, jax.random.key(0))))
    params = sharding.abstract(mesh, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype), params))
    integers = lambda *shape: sharding.abstract_batch(mesh, (PROMPTS, *shape), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    settings = dict(samples=SAMPLES, max_new_tokens=NEW_TOKENS, temperature=0.8, top_p=1.0, eos_ids=(0,))
    traced = jax.jit(partial(sample, model, **settings)).trace(
        params, integers(PROMPT_TOKENS), integers(), integers(), key
    )
    weights = sum(2 * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(params))
    slots = PROMPTS * (PROMPT_TOKENS + SAMPLES * NEW_TOKENS)
    caches = 2 * 2 * slots * config.L * config.K * config.H / mesh.size
    return traced.lower(lowering_platforms=("tpu",)), (weights + caches) / chip.hbm_bandwidth


def cycles(text: str, of_loop: bool) -> Counter:
    """Estimated cycles of a compiled program, or of one pass of its first loop, by the operation they come from."""
    parts = re.findall(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL)
    bodies = {name: body for _, name, body in parts}

    @cache
    def count(name: str) -> Counter:
        found = Counter()
        for line in bodies[name].splitlines():
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                place = re.search(r'op_name="([^"]*)"', line)
                found["/".join(place.group(1).split("/")[-2:]) if place else "other"] += int(estimate.group(1))
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                condition, body = loop.groups()
                passes = int(re.findall(r"constant\((\d+)\)", bodies[condition])[-1])
                for kind, cost in count(body).items():
                    found[kind] += passes * cost
        return found

    entry = next(name for is_entry, name, _ in parts if is_entry)
    return count(re.search(r"body=%?([\w.\-]+)", bodies[entry]).group(1) if of_loop else entry)


if __name__ == "__main__":
    main()
