"""How many of the places that a decode loop computes hold a token of a response: what refilling them could gain.

    python -m benchmarks.slots [--batch=64] [--first_round=128]

Goes through the batches of `Rounds` with made-up responses to 2,048 prompts with the lengths of GSM8K, five each, of at
most 512 tokens. The length of a response is that of its solution times a log-normal factor of sigma 0.25. Drafted, a
response leaves its reference at each token with a fixed chance. No token is sampled.
"""

import argparse

import numpy as np

from benchmarks.workload import LENGTHS
from premem_jax.data.examples import Example
from premem_jax.data.pipeline import Tokenized
from premem_jax.evaluators.rounds import Rounds, round_tokens

ROWS, SAMPLES, LONGEST = 2048, 5, 512


def places(batch: int, first_round: int, leaves: float | None) -> tuple[float, float]:
    """Share of tokens that the references decide, and tokens decoded per place; `leaves` is the chance per token."""
    random = np.random.default_rng(0)
    lengths = [LENGTHS[i] for i in random.integers(len(LENGTHS), size=ROWS)]
    zeros = [tuple(np.zeros(n, np.int32) for n in pair) for pair in lengths]
    prompts, targets = zip(*zeros, strict=True)
    data = Tokenized([Example(e, "", "", "") for e in range(ROWS)], prompts, targets)
    size = np.array([len(target) for target in targets])[:, None]
    total = np.minimum(size * random.lognormal(0, 0.25, (ROWS, SAMPLES)), LONGEST).astype(int)
    kept = np.zeros_like(total)
    if leaves is not None:
        kept = random.geometric(leaves, total.shape) - 1
        total = np.where(kept >= size, size, np.maximum(total, kept))
        kept = np.minimum(kept, size)
    rounds = Rounds(data, SAMPLES, round_tokens(LONGEST, first_round), (), range(ROWS))
    left = total - kept
    if leaves is not None:
        for row in range(ROWS):
            if rounds.begin(row, kept[row], kept[row] == total[row], np.zeros(SAMPLES)):
                rounds.take(row)
    decoded = computed = 0
    tokens = round_tokens(LONGEST, first_round)
    for made in rounds.batches(batch, np.arange):
        R, T = made.arrays["begun"].shape[1], tokens[made.round]
        length = np.zeros(made.size * R, int)
        for x, (row, r) in enumerate(made.at):
            length[x] = min(T, left[row, r])
            left[row, r] -= length[x]
        decoded, computed = decoded + length.sum(), computed + len(length) * min(T, length.max() + 1)
        n = len(made.at)
        rounds.add(made, np.zeros((n, T), np.int32), length[:n], np.zeros(n))
    return kept.sum() / total.sum(), decoded / computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--first_round", type=int, default=128)
    options = parser.parse_args()
    for leaves in (None, 0.1, 0.02, 0.005, 0.001):
        decided, full = places(options.batch, options.first_round, leaves)
        said = "plain" if leaves is None else f"leaving with a chance of {leaves} per token"
        print(f"{said}: {decided:.0%} of tokens decided, {full:.0%} of the places of decode steps hold a token")


if __name__ == "__main__":
    main()
