"""Robustness: which training examples are still solved when the prompt is perturbed?

Kang et al. (arXiv 2411.07681): after training, nearly every training example is solved. With a forced opening ("First",
"We know that") or a reworded question, examples with a high pre-memorization accuracy still are; those with a low one
often are not.
"""

from collections.abc import Sequence

import numpy as np

from premem_jax.analysis import premem
from premem_jax.analysis.runs import Run

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # each bin up to the next edge, the last one being exactly 1
PERTURBED = "train "  # begins the splits of training examples that were asked otherwise, see `Split.perturbed`
ALL = "all runs"


def binned(premem_E: np.ndarray, accuracy_E: np.ndarray, draws: int, seed: int, level: float = 0.95) -> list[dict]:
    """For each bin of pre-memorization accuracy: `lowest` value, `examples`, mean `accuracy` and its `interval`.

    Args:
      premem_E: (E,) pre-memorization accuracy.
      accuracy_E: (E,) any other accuracy of the same examples. Examples with a NaN in either are omitted.
      draws: number of bootstrap draws over examples, for the percentile interval [low, high].
      seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    known_E = np.isfinite(premem_E) & np.isfinite(accuracy_E)
    bin_E = np.digitize(premem_E[known_E], EDGES[1:])
    tails, rows = [50 - 50 * level, 50 + 50 * level], []
    for i, lowest in enumerate(EDGES):
        values = accuracy_E[known_E][bin_E == i]
        row = {"lowest": lowest, "examples": len(values), "accuracy": np.nan, "interval": [np.nan, np.nan]}
        if len(values):
            means = [np.mean(rng.choice(values, len(values))) for _ in range(draws)]
            row |= {"accuracy": float(np.mean(values)), "interval": np.percentile(means, tails).tolist()}
        rows.append(row)
    return rows


def table(runs: Sequence[Run], perplexities: Sequence[float], draws: int, seed: int) -> list[dict]:
    """For each run with perturbed prompts, and for all of them: `run`, `asked` ("as trained" or how) and `bins`.

    Values at the last evaluation of both accuracies. `perplexities` are the memorization thresholds of the runs.
    """
    found: dict[str, list] = {}
    for run, perplexity in zip(runs, perplexities, strict=True):
        sampled = [name for name, split in run.trace.splits.items() if split.samples.any()]
        perturbed = sorted(name for name in sampled if name.startswith(PERTURBED))
        train = run.train
        premem_ME = premem.pre_memorization_accuracy(train.accuracy_or_skipped, train.nll, perplexity)
        for name in ["train", *perturbed] if perturbed else []:
            split = run.trace.split(name)
            at = np.searchsorted(train.example, split.example)
            both = np.isfinite(split.accuracy).any(axis=1) & np.isfinite(premem_ME[:, at]).any(axis=1)
            if both.any():
                m = np.flatnonzero(both)[-1]
                asked = name.removeprefix(PERTURBED) if name in perturbed else "as trained"
                found.setdefault(asked, []).append((run.name, premem_ME[m, at], split.accuracy[m]))
    if len({name for of_runs in found.values() for name, _, _ in of_runs}) > 1:
        for of_runs in found.values():
            of_runs.insert(0, (ALL, *(np.concatenate(x) for x in zip(*((p, a) for _, p, a in of_runs), strict=True))))
    rows = [
        {"run": name, "asked": asked, "bins": binned(premem_E, accuracy_E, draws, seed)}
        for asked, of_runs in found.items()
        for name, premem_E, accuracy_E in of_runs
    ]
    return sorted(rows, key=lambda row: (row["run"] != ALL, row["run"]))
