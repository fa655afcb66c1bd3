"""Real tokens in the batches of a study, and XLA's estimate for an epoch of them, with shared rows and without.

    python -m benchmarks.padding DATA_DIR TOKENIZER [--config=llama3_8b_gsm8k] [--cycles] [--topology=v5e:4x4]

Both sides have the examples of the config in its order; one gives each example a row, padded to `data.buckets`, the
other packs them as `train.packed_tokens` says. Prints for each how many batches of an epoch
have which shape, and the share of real tokens in them. `--cycles` compiles an update of each shape for the topology,
which takes minutes, and sums XLA's estimated cycles (see `tpu_cycles`) and the bytes that each chip receives.
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
from premem_jax.data.pipeline import Tokenized, steps_per_epoch, tokenize
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


def shapes(config, data: Tokenized, packing: Packing) -> Iterator[tuple[int, int]]:
    """The shape of each batch of the first epoch."""
    order = dict(batch=config.train.batch, seed=config.seed, buckets=config.data.buckets, packing=packing)
    steps = steps_per_epoch(len(data), config.train.batch)
    for _, arrays in train_batches(data, 0, steps, **order, window=config.train.length_window):
        yield arrays["tokens"].shape


def update(config, place, rows: int, length: int) -> tuple[int, float, float]:
    """Cycles, peak bytes and received bytes of an update of some rows of one length."""
    changed = ConfigDict(config.to_dict())
    if rows == config.train.batch:
        changed.train.packed_tokens, changed.data.buckets = (), (length,)
    else:
        changed.train.packed_tokens = (rows * length // config.train.batch,)
    mesh = sharding.make_mesh(config.mesh, devices(place))
    compiled = lowered.lower(changed, mesh, "train")[0].compile()
    cost = lowered.cost(changed, place, mesh, "train")
    count = cycles(compiled.as_text(), of_loop=False).total()
    return count, compiled.memory_analysis().peak_memory_in_bytes, cost.ici_bytes + cost.dcn_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("tokenizer")
    parser.add_argument("--config", default="llama3_8b_gsm8k")
    parser.add_argument("--cycles", action="store_true")
    parser.add_argument("--topology", default="v5e:4x4")
    options = parser.parse_args()
    config = recipes.load(options.config)
    place, data = topology(options.topology), examples(config, options.data, options.tokenizer)
    sums = []
    parts, train = sharding.parts(sharding.make_mesh(config.mesh, devices(place))), config.train
    shared = Packing.of(train.packed_tokens, train.batch, parts, train.micro_batches)
    for name, packing in (("a row each", ALONE), ("shared rows", shared)):
        counts = Counter(shapes(config, data, packing))
        slots = sum(count * rows * length for (rows, length), count in counts.items())
        print(f"{name}: {np.sum(data.lengths) / slots:.1%} of {slots:,} tokens are real", flush=True)
        total = np.zeros(2)
        for (rows, length), count in sorted(counts.items()):
            line = f"{count:>6} x {rows:>3} rows of {length:>4}"
            if options.cycles:
                count_of, peak, received = update(config, place, rows, length)
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
