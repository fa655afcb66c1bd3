"""Growth of the cost of training, scoring and sampling, measured here and by the plan's estimate for TPUs.

    python -m benchmarks.growth [--turns=5]

One thing changes at a time: the model, the examples per batch, the samples per example, the tokens per text, the
devices (virtual ones on this machine's cores, so they show the overhead of sharding, not its gain). Prints the seconds
of one call and the ratio to the first row, and the same ratio for Llama3-8B on TPU v5e by the roofline of
`configs/plan.py`, whose models are llama3_2_1b and llama3_8b. The table goes to benchmarks/results/growth.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

BASE = dict(model="1m", examples=32, samples=4, context=128, devices=1)
AXES = dict(
    model=("1m", "20m"),
    examples=(32, 64, 128),
    samples=(1, 2, 4, 8),
    context=(128, 256, 512),
    devices=(1, 2, 4, 8),
)
PROGRAMS = ("train", "score", "sample")
PLANNED = {"1m": "llama3_2_1b", "20m": "llama3_8b"}
RESULT = Path(__file__).parent / "results" / "growth.md"


def measure(point: dict, turns: int) -> dict[str, float]:
    """Median seconds of one call of each program, after one that compiles."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import workload
    from premem_jax import sharding
    from premem_jax.models.architecture import ModelConfig
    from premem_jax.models.decoder import build, init, unstack
    from premem_jax.models.nll import target_nll
    from premem_jax.running.programs import Clock, Program
    from premem_jax.sampling.sampler import sample
    from premem_jax.training.trainer import Trainer

    shape = ModelConfig(**workload.SIZES[point["model"]])
    mesh = sharding.make_mesh(dict(data=1, fsdp=point["devices"], tensor=1))
    model, B, T = build(shape, mesh=mesh), point["examples"], point["context"]
    trainer = Trainer(model, mesh, Clock(), workload.OPTIMIZER, 1)
    params = jax.jit(init, static_argnums=0, out_shardings=sharding.shardings(mesh, trainer.abstract_state["params"]))(
        shape, jax.random.key(0)
    )
    decode_mesh = sharding.decode_mesh(mesh)
    decode = unstack(params)
    decode = jax.device_put(decode, sharding.shardings(decode_mesh, decode))
    tokens = np.random.default_rng(0).integers(3, shape.V, (B, T)).astype(np.int32)
    text = sharding.put_batch(mesh, dict(tokens=tokens, weights=np.ones((B, T), np.float32)))
    half = sharding.put_batch(decode_mesh, (tokens[:, : T // 2], np.full(B, T // 2, np.int32), np.arange(B)))
    settings = dict(samples=point["samples"], max_new_tokens=T // 2, temperature=0.8, top_p=1.0, eos_ids=(-1,))
    draw = Program(partial(sample, model.on(mesh=decode_mesh), **settings), Clock())
    score, key = Program(partial(target_nll, model), Clock()), sharding.random_key(decode_mesh, 0)
    state = trainer.init_state(jax.tree.map(jnp.copy, params))

    def train():
        nonlocal state
        state, values = trainer.program(state, text, np.float32(1e-4))
        return values

    calls = dict(train=train, score=lambda: score(params, *text.values()), sample=lambda: draw(decode, *half, key))
    seconds = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        times = []
        for _ in range(turns):
            begun = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - begun)
        seconds[name] = statistics.median(times)
    return seconds


def planned(point: dict) -> dict[str, float]:
    """The same by the roofline: Llama models on eight chips per device, with five times the text."""
    from premem_jax.models import costs
    from premem_jax.models.architecture import preset
    from premem_jax.running.topology import topology

    chips = 8 * point["devices"]
    place, config = topology(f"v5e:{chips // 4}x4"), preset(PLANNED[point["model"]])
    train, decode = costs.Layout(1, chips, 1), costs.Layout(chips // 8, 1, 8)
    B, T = 2 * point["examples"], 5 * point["context"]
    of = dict(
        train=costs.train(config, train, 1, B=2 * B, T=T, micro_batches=1),
        score=costs.score(config, train, B=B, T=T),
        sample=costs.sample(config, decode, B=B, R=point["samples"], P=T // 2, T=T // 2),
    )
    return {name: cost.seconds(place) for name, cost in of.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.point, options.turns)))
        return
    lines = [
        f"| what | {' | '.join(f'{name}, ms | ratio | plan' for name in PROGRAMS)} |",
        "|---" * (1 + 3 * len(PROGRAMS)) + "|",
    ]
    for axis, values in AXES.items():
        first = None
        for value in values:
            point = BASE | {axis: value}
            flags = f"--xla_force_host_platform_device_count={point['devices']}"
            command = [sys.executable, "-m", "benchmarks.growth", f"--turns={options.turns}", "--point"]
            environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
            done = subprocess.run([*command, json.dumps(point)], env=environment, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout), planned(point)
            first = first or found
            cells = [f"{axis} {value}"]
            for name in PROGRAMS:
                here, there = (mine[name] / of_first[name] for mine, of_first in zip(found, first, strict=True))
                cells += [f"{1e3 * found[0][name]:,.0f}", f"{here:.2f}", f"{there:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
