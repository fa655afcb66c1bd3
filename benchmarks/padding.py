"""Real tokens in the batches of a study, and XLA's estimate for them, with shared rows and without.

    python -m benchmarks.padding DATA_DIR TOKENIZER [--config=llama3_8b_gsm8k] [--program=score] [--cycles] \
        [--topology=v5e:4x4]

Batches are an epoch of updates, or with `--program=score` one evaluation of `train_likelihood`. Both sides have the
examples of the config in its order; one gives each example a row, padded to `data.buckets`, the other packs them as
`packed_tokens` says. Prints for each how many batches have which shape, and the share of real tokens in them.
`--cycles` compiles the program of each shape for the topology, which takes minutes, and sums XLA's estimated cycles
(see `tpu_cycles`) and the bytes that each chip receives.
"""

import argparse
from collections import Counter
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from benchmarks.tpu_cycles import cycles
from premem_jax import recipes, sharding
from premem_jax.data import tokenizer_files
from premem_jax.data.packing import ALONE, Packing
from premem_jax.data.pipeline import Tokenized, evaluation_batches, shared_batches, steps_per_epoch, tokenize
from premem_jax.data.reader import train_batches
from premem_jax.planning import lowered
from premem_jax.running.topology import devices, topology
from premem_jax.tasks import task as tasks


def examples(config, folder: str, tokenizer: str) -> Tokenized:
    """The training examples of a config, from files and a tokenizer at hand."""
    data = config.data.to_dict() | dict(path=folder)
    asked = {key: data[key] for key in ("path", "train", "heldout", "test", "seed", "grader", "prompt", "target")}
    rows = tasks.load(config.data.task, **asked, cache=config.cache or "cache").splits["train"]
    options = dict(context=config.data.context, drop_long=config.data.drop_long)
    return tokenize("train", rows, tokenizer_files.load(tokenizer), **options)


def settings(config, program: str):
    """The settings of a program, which has `batch` and `packed_tokens`."""
    return config.train if program == "train" else config.evals.train_likelihood


def shapes(config, data: Tokenized, program: str, packing: Packing) -> Iterator[tuple[int, int]]:
    """The shape of each batch of the first epoch, or of an evaluation."""
    if program == "score":
        layout = dict(batch=settings(config, program).batch, buckets=config.data.buckets)
        shared = packing.shares(layout["batch"])
        batches = shared_batches(data, packing, **layout) if shared else evaluation_batches(data, **layout)
        yield from (arrays["tokens"].shape for _, arrays in batches)
        return
    order = dict(batch=config.train.batch, seed=config.seed, buckets=config.data.buckets, packing=packing)
    steps = steps_per_epoch(len(data), config.train.batch)
    for _, arrays in train_batches(data, 0, steps, **order, window=config.train.length_window):
        yield arrays["tokens"].shape


def estimate(config, place, program: str, rows: int, length: int) -> tuple[int, float, float]:
    """Cycles, peak bytes and received bytes of a batch of some rows of one length."""
    changed = ConfigDict(config.to_dict())
    asked = settings(changed, program)
    if rows == asked.batch:
        asked.packed_tokens, changed.data.buckets = (), (length,)
    else:
        asked.packed_tokens = (rows * length // asked.batch,)
    if program == "score":
        changed.evals = ConfigDict(dict(train_likelihood=asked))
    mesh = sharding.make_mesh(config.mesh, devices(place))
    compiled = lowered.lower(changed, mesh, program)[0].compile()
    cost = lowered.cost(changed, place, mesh, program)
    count = cycles(compiled.as_text(), of_loop=False).total()
    return count, compiled.memory_analysis().peak_memory_in_bytes, cost.ici_bytes + cost.dcn_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("tokenizer")
    parser.add_argument("--config", default="llama3_8b_gsm8k")
    parser.add_argument("--program", default="train", choices=["train", "score"])
    parser.add_argument("--cycles", action="store_true")
    parser.add_argument("--topology", default="v5e:4x4")
    options = parser.parse_args()
    config = recipes.load(options.config)
    place, data = topology(options.topology), examples(config, options.data, options.tokenizer)
    sums = []
    parts, asked = sharding.parts(sharding.make_mesh(config.mesh, devices(place))), settings(config, options.program)
    shared = Packing.of(asked.packed_tokens, asked.batch, parts, asked.get("micro_batches", 1))
    for name, packing in (("a row each", ALONE), ("shared rows", shared)):
        counts = Counter(shapes(config, data, options.program, packing))
        slots = sum(count * rows * length for (rows, length), count in counts.items())
        print(f"{name}: {np.sum(data.lengths) / slots:.1%} of {slots:,} tokens are real", flush=True)
        total = np.zeros(2)
        for (rows, length), count in sorted(counts.items()):
            line = f"{count:>6} x {rows:>3} rows of {length:>4}"
            if options.cycles:
                count_of, peak, received = estimate(config, place, options.program, rows, length)
                total += count * np.array([count_of, received])
                line += f"  {count_of / 1e6:8,.0f} M cycles  {peak / 1e9:6.2f} GB  receives {received / 1e9:6.1f} GB"
            print(line, flush=True)
        sums.append([slots, *total] if options.cycles else [slots])
        if options.cycles:
            print(
                f"{total[0] / 1e9:,.1f} G cycles together, {total[1] / 1e12:.2f} TB received by each chip", flush=True
            )
    ratios = [f"{x:.2f}" for x in np.divide(*sums)]
    print(f"a row each / shared rows: {', '.join(ratios)} (tokens{', cycles, received' if options.cycles else ''})")


if __name__ == "__main__":
    main()
