"""Cost of first-order influence by source, in forward passes of the probed responses.

    python -m benchmarks.influence [--model=1m] [--rows=16] [--length=128] [--turns=7]

Forward mode linearizes once and takes one product per source; a central difference takes two forward passes per source.
Prints medians of wall time, in turns, and XLA's counts of floating-point operations, each over those of one scoring
pass. By arithmetic a product costs two: every matrix product has a derivative in each of its two factors.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workload
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.decoder import build, init
from premem_jax.models.nll import log_likelihood
from premem_jax.training.influence import central_difference, influence


def programs(model, most: int) -> dict:
    """name → (sources, compiled function of parameters, list of directions, tokens and weights)."""
    score = lambda params, directions, *rows: log_likelihood(model, params, *rows)

    def forward_mode(sources):
        def function(params, directions, *rows):
            return influence(model, params, {str(i): directions[i] for i in range(sources)}, *rows)

        return function

    def differences(params, directions, *rows):
        return central_difference(lambda p: log_likelihood(model, p, *rows), params, directions[0])

    found = {"one scoring pass": (0, score), "central difference": (1, differences)}
    found |= {f"forward mode, {n} sources": (n, forward_mode(n)) for n in range(1, most + 1)}
    return {name: (n, jax.jit(function)) for name, (n, function) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=workload.SIZES, default="1m")
    for name, default in dict(rows=16, length=128, sources=4, turns=7).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    shape, rng = ModelConfig(**workload.SIZES[options.model]), np.random.default_rng(0)
    params = jax.jit(init, static_argnums=0)(shape, jax.random.key(0))
    directions = [jax.tree.map(lambda x: jnp.asarray(1e-3 * rng.normal(size=x.shape), "f"), params) for _ in range(4)]
    tokens = jnp.asarray(rng.integers(3, shape.V, (options.rows, options.length)), jnp.int32)
    args = params, directions, tokens, jnp.ones(tokens.shape, jnp.float32)
    compiled = {name: (n, f.lower(*args).compile()) for name, (n, f) in programs(build(shape), options.sources).items()}
    seconds = {name: [] for name in compiled}
    for _ in range(options.turns + 1):
        for name, (_, function) in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    flops = {name: function.cost_analysis()["flops"] for name, (_, function) in compiled.items()}
    one = "one scoring pass"
    print(f"{options.model}, {options.rows} responses of {options.length} tokens: {1e3 * median[one]:.0f} ms a pass")
    for name, (n, _) in compiled.items():
        passes, counted = median[name] / median[one], flops[name] / flops[one]
        goal = f"; 1 + 1.5 a source would be {1 + 1.5 * n:.1f}" if n else ""
        print(f"{name:>24}: {passes:5.2f} passes by the clock, {counted:5.2f} by operations{goal}")


if __name__ == "__main__":
    main()
