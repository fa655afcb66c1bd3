"""Gain of each choice for speed: our code against a plain version, in turns, in one process.

    python -m benchmarks.choices [--model=20m] [--turns=5] [--only=buckets,nucleus]

Both versions do the same work with the same weights, on texts with the lengths of GSM8K. Prints medians of wall time
and the range of the ratio; the table goes to benchmarks/results/choices-MODEL.md. `decode_layout` uses four virtual
devices, which share the cores of this machine. For the gain from rounds, see `benchmarks.run --suite=finetune`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import workload
from premem_jax import sharding
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.decoder import build, init, unstack
from premem_jax.models.nll import target_nll
from premem_jax.running.programs import Clock
from premem_jax.sampling import sampler
from premem_jax.training.trainer import Trainer

CONTEXT = 640  # of a text without buckets
NEW_TOKENS = 64
RESULTS = Path(__file__).parent / "results"


class Choice(NamedTuple):
    """Two versions of the same work; `predicted` is the ratio plain / ours."""

    what: str
    predicted: str
    ours: Callable
    plain: Callable


class Choices:
    """Each public method is a choice."""

    def __init__(self, model: str):
        self._shape = ModelConfig(**workload.SIZES[model])
        self._model, self._mesh = build(self._shape), mesh(1)
        self._params = jax.jit(init, static_argnums=0)(self._shape, jax.random.key(0))
        random = np.random.default_rng(0)
        self._texts = [random.integers(3, self._shape.V, sum(pair)).astype(np.int32) for pair in workload.LENGTHS]
        self._prompts = [text[:prompt] for text, (prompt, _) in zip(self._texts, workload.LENGTHS, strict=True)][::2]

    def buckets(self) -> Choice:
        score = jax.jit(partial(target_nll, self._model))
        parts = [self._texts[i : i + workload.SCORE_BATCH] for i in range(0, len(self._texts), workload.SCORE_BATCH)]
        ends = [-(-len(part[-1]) // 32) * 32 for part in parts]

        def over(lengths):
            batches = [padded(part, T)[0] for part, T in zip(parts, lengths, strict=True)]
            return lambda: [score(self._params, tokens, tokens > 0) for tokens in batches]

        predicted = f"{CONTEXT * len(parts) / sum(ends):.1f}, more with attention"
        return Choice("score in length buckets, not at the full context", predicted, over(ends), over([CONTEXT] * 4))

    def shared_prompts(self) -> Choice:
        repeated = [prompt for prompt in self._prompts for _ in range(workload.SAMPLES)]
        plain = self._sample(repeated, samples=1)
        return Choice("one prefill for the samples of a prompt", "1.2", self._sample(self._prompts), plain)

    def nucleus(self) -> Choice:
        ours, plain = (self._sample(self._prompts, top_p=workload.TOP_P) for _ in range(2))
        return Choice("nucleus by bisection, not by a sort", "above 1", ours, with_sampler("nucleus", by_sort, plain))

    def draw(self) -> Choice:
        ours, plain = (self._sample(self._prompts) for _ in range(2))
        name = "two random numbers per row, not one per vocabulary entry"
        return Choice(name, "1.2", ours, with_sampler("draw", by_noise, plain))

    def micro_batches(self) -> Choice:
        return Choice("4 micro-batches, which fit CPU caches better", "above 1", self._train(4), self._train(1))

    def everything_kept(self) -> Choice:
        name = "keep all activations for the backward pass, not only the inputs"
        return Choice(name, "1.3", self._train(4), self._train(4, "full"))

    def vocabulary_chunks(self) -> Choice:
        ours = self._train(1, vocab_chunks=8)
        return Choice("vocabulary in 8 chunks (for memory)", "below 1", ours, self._train(1))

    def decode_layout(self) -> Choice:
        """On four devices: whole weights on each, or weights that each layer gathers for every token."""
        cut = mesh(4)
        ours, plain = (self._sample(self._prompts, mesh=m) for m in (sharding.decode_mesh(cut), cut))
        return Choice("a decode layout of the weights, four devices", "above 2", ours, plain)

    def _sample(self, prompts: list, samples=workload.SAMPLES, top_p=1.0, mesh: Mesh | None = None) -> Callable:
        mesh = mesh or self._mesh
        settings = dict(max_new_tokens=NEW_TOKENS, temperature=workload.TEMPERATURE, top_p=top_p, eos_ids=(-1,))
        program = jax.jit(partial(sampler.sample, self._model.on(mesh=mesh), samples=samples, **settings))
        params = unstack(self._params)
        params = jax.device_put(params, sharding.shardings(mesh, params))
        given = sharding.put_batch(mesh, (*padded(prompts, 128), np.arange(len(prompts))))
        return lambda: program(params, *given, sharding.random_key(mesh, 0))

    def _train(self, micro_batches: int, remat="none", vocab_chunks=1) -> Callable:
        model = build(self._shape, remat=remat, vocab_chunks=vocab_chunks)
        trainer = Trainer(model, self._mesh, Clock(), workload.OPTIMIZER, micro_batches)
        state = trainer.init_state(jax.tree.map(jnp.copy, self._params))
        tokens = padded(self._texts[:: len(self._texts) // workload.TRAIN_ROWS], workload.TRAIN_LENGTH)[0]
        batch = sharding.put_batch(self._mesh, dict(tokens=tokens, weights=(tokens > 0).astype(np.float32)))

        def update():
            nonlocal state
            state, values = trainer.program(state, batch, np.float32(workload.LEARNING_RATE))
            return values

        return update


def mesh(devices: int) -> Mesh:
    return sharding.make_mesh(dict(data=1, fsdp=devices, tensor=1), jax.devices()[:devices])


def padded(texts: list, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded tokens (B, length) and their numbers (B,)."""
    tokens = np.stack([np.pad(text[:length], (0, max(0, length - len(text)))) for text in texts])
    return tokens, np.array([min(length, len(text)) for text in texts], np.int32)


def with_sampler(name: str, plain: Callable, call: Callable) -> Callable:
    """`call`, compiled with another function instead of the sampler's."""
    with mock.patch.object(sampler, name, plain):
        jax.block_until_ready(call())
    return call


def by_sort(probability_XV: jax.Array, top_p: float) -> jax.Array:
    falling = jnp.sort(probability_XV, axis=-1, descending=True)
    count = jnp.sum(jnp.cumsum(falling, axis=-1) - falling < top_p, axis=-1, keepdims=True)
    return jnp.where(probability_XV < jnp.take_along_axis(falling, count - 1, axis=-1), 0, probability_XV)


def by_noise(keys_XR: jax.Array, weight_XV: jax.Array) -> jax.Array:
    of_row = jax.vmap(jax.random.categorical, (0, None))
    return jax.vmap(of_row)(keys_XR, jnp.log(weight_XV))


def seconds(call: Callable) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="20m", choices=list(workload.SIZES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", help="names of choices; all if left out")
    options = parser.parse_args()
    choices = Choices(options.model)
    names = [name for name, value in vars(Choices).items() if callable(value) and not name.startswith("_")]
    lines = ["| choice | predicted | measured, plain / ours | plain, ms | ours, ms |", "|---|---|---|---|---|"]
    print("\n".join(lines))
    for name in options.only.split(",") if options.only else names:
        choice = getattr(choices, name)()
        turns = [(seconds(choice.plain), seconds(choice.ours)) for _ in range(options.turns + 1)][1:]
        ratio = sorted(plain / ours for plain, ours in turns)
        plain, ours = (1e3 * statistics.median(times) for times in zip(*turns, strict=True))
        measured = f"{statistics.median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f})"
        lines.append(f"| {choice.what} | {choice.predicted} | {measured} | {plain:,.0f} | {ours:,.0f} |")
        print(lines[-1], flush=True)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"choices-{options.model}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
