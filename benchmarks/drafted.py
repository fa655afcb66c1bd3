"""Reference-drafted sampling against plain sampling: the same tokens by the same keys, the same texts by other keys.

    python -m benchmarks.drafted [--draws=100000]

Samples a small fp32 model with peaked random predictions, by references that it follows in part. Prints

- how many of the responses differ between both ways with the same keys, and for each the margin of the draw at which
  they part: the smallest change of its random numbers that gives the other token. Rounding can flip a draw of a margin
  near the precision of the logits, about 1e-6.
- the p-value of a chi-square test that whole texts have one distribution, drawn both ways with other keys.
- the share of tokens that the references decided.
"""

import argparse
import math
from functools import partial

import jax
import numpy as np
import scipy.stats

from premem_jax.models.architecture import ModelConfig
from premem_jax.models.decoder import build, init
from premem_jax.models.nll import next_token_logits
from premem_jax.sampling.drafted import follow
from premem_jax.sampling.sampler import sample, sample_keys

CONFIG = ModelConfig(V=40, D=32, L=2, N=4, K=2, H=8, F=48, rope_theta=100.0)
MODEL = build(CONFIG)
PROMPTS, SAMPLES, P, T, SHARPNESS, TEMPERATURE = 500, 10, 6, 8, 3.0, 0.8
SETTINGS = dict(samples=SAMPLES, temperature=TEMPERATURE, longest=T, top_p=1.0, eos_ids=(0, 1))
RARE = 20  # texts that are seen less often share one cell


class Sampler:
    """Both ways to sample the same prompts; each turn has its own key."""

    def __init__(self):
        random = np.random.default_rng(0)
        params = init(CONFIG, jax.random.key(0))
        self.params = params | {"final_norm": {"scale": SHARPNESS * params["final_norm"]["scale"]}}
        # Few prompts, many ids of each, so that texts repeat.
        self.prompts = random.integers(2, CONFIG.V, (5, P))[np.arange(PROMPTS) % 5].astype(np.int32)
        self.ids, self.lengths = np.arange(PROMPTS, dtype=np.int32), np.full(PROMPTS, P, np.int32)
        self._sample = jax.jit(partial(sample, MODEL, max_new_tokens=T, **SETTINGS))
        self._follow = jax.jit(partial(follow, MODEL, **SETTINGS))
        first, _ = self.plain(jax.random.key(1))
        self.references = first[np.arange(PROMPTS) % 5, 0]  # the same for all ids of a prompt

    def plain(self, key) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (PROMPTS, SAMPLES, T), with 0 at a stop marker and behind it, and their numbers."""
        drawn = self._sample(self.params, self.prompts, self.lengths, self.ids, key)
        return np.asarray(drawn.tokens), np.asarray(drawn.length)

    def drafted(self, key) -> tuple[np.ndarray, np.ndarray, int]:
        """The same, and the number of tokens that the references decided."""
        texts = np.concatenate([self.prompts, self.references], axis=1)
        found = self._follow(self.params, texts, self.lengths, np.full(PROMPTS, T, np.int32), self.ids, key)
        kept, ended = map(np.asarray, found)
        begun = np.where(ended, 0, kept).astype(np.int32)
        drawn = self._sample(self.params, texts, self.lengths, self.ids, key, begun_BR=begun)
        own = np.asarray(drawn.tokens)
        place = np.arange(T) - kept[..., None]
        tokens = np.take_along_axis(own, np.maximum(place, 0), axis=2)
        tokens = np.where(place < 0, self.references[:, None], tokens)
        length = kept + np.where(ended, 0, drawn.length)
        return np.where(np.arange(T) < length[..., None], tokens, 0), length, int(kept.sum())


def margin(logits_V: np.ndarray, key) -> float:
    """Smallest change of the two random numbers of a draw that gives another token, in float64."""
    weights = np.exp((logits_V - logits_V.max()) / np.float64(TEMPERATURE))
    count = 1 << (math.isqrt(len(weights)).bit_length() - 1)
    blocks = np.pad(weights, (0, -len(weights) % count)).reshape(count, -1)
    first, second = np.asarray(jax.random.uniform(key, (2,)), np.float64)
    edges = np.cumsum(blocks.sum(axis=1)) / blocks.sum()
    inside = np.cumsum(blocks[np.searchsorted(edges, first)])
    return min(np.abs(edges - first).min(), np.abs(inside / inside[-1] - second).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100_000)
    options = parser.parse_args()
    sampler, turns = Sampler(), -(-options.draws // (PROMPTS * SAMPLES))
    logits_of = jax.jit(partial(next_token_logits, MODEL))
    texts, margins, decided, drawn = ([], []), [], 0, 0
    for turn in range(turns):
        key = jax.random.key(100 + turn)
        (theirs, length), (mine, _, kept) = sampler.plain(key), sampler.drafted(key)
        texts[0].append(theirs), texts[1].append(sampler.drafted(jax.random.key(10_000 + turn))[0])
        decided, drawn = decided + kept, drawn + int(length.sum())
        for b, r in np.argwhere((mine != theirs).any(axis=2)):
            t = int(np.argmax(mine[b, r] != theirs[b, r]))
            text = np.concatenate([sampler.prompts[b], theirs[b, r]])[None]
            of_sample = sample_keys(key, sampler.ids[b : b + 1], 0, SAMPLES)[0, r]
            logits = np.asarray(logits_of(sampler.params, text))[0, P + t - 1]
            margins.append(margin(logits, jax.random.fold_in(of_sample, t)))
    each = [np.concatenate(half).reshape(-1, PROMPTS // 5, 5, SAMPLES, T) for half in texts]
    print(f"{turns * PROMPTS * SAMPLES:,} responses, {decided / drawn:.1%} of their tokens decided by references")
    print(f"{len(margins)} differ with the same keys; margins of these draws {[f'{m:.0e}' for m in margins]}")
    for prompt in range(5):
        table = counts(*(half[:, :, prompt].reshape(-1, T) for half in each))
        p = scipy.stats.chi2_contingency(table).pvalue
        print(f"prompt {prompt}: chi-square of {table.shape[1]} texts with other keys, p = {p:.3f}")


def counts(*samples: np.ndarray) -> np.ndarray:
    """How often each text is seen in each sample (2, texts)."""
    names, which = np.unique(np.concatenate(samples), axis=0, return_inverse=True)
    halves = np.split(which.ravel(), np.cumsum([len(s) for s in samples])[:-1])
    table = np.stack([np.bincount(half, minlength=len(names)) for half in halves])
    rare = table.sum(axis=0) < RARE
    return np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)


if __name__ == "__main__":
    main()
