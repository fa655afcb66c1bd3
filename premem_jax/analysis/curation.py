"""Savings of curation: test accuracy against number of training examples, compared with random collection.

Members of one seed share base model, originals and test questions.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from premem_jax.analysis.jobs import BASE, IID, ORACLE, Job, job_of


class Accuracies(NamedTuple):
    """Test accuracies of S seeds that have all members."""

    seeds: list[int]
    base: np.ndarray  # (S,)
    of: dict[tuple[str, int], np.ndarray]  # (strategy, added) → (S,)


def line_up(accuracy: Mapping[str, float]) -> Accuracies:
    """Accuracies by member name, of the seeds that have all members."""
    jobs = {job: value for name, value in accuracy.items() if (job := job_of(name))}
    kinds = list(dict.fromkeys((job.strategy, job.added) for job in jobs))
    seeds = sorted({job.seed for job in jobs})
    whole = [seed for seed in seeds if all(Job(*kind, seed) in jobs for kind in kinds)]
    of = {kind: np.array([jobs[Job(*kind, seed)] for seed in whole]) for kind in kinds}
    return Accuracies(whole, of.pop((BASE, 0), np.zeros(len(whole))), of)


def findings(found: Accuracies, originals: int, draws: int, seed: int) -> list[dict]:
    """A row for each strategy and number of examples N:

    `accuracy`, the mean over seeds; `ratio`, the number of random examples with the same accuracy, divided by N;
    `gain`, accuracy minus that of N random examples; `share_of_oracle`, gain divided by the oracle's. Each has a 95 %
    `interval` over seeds, None with one seed. A ratio is `censored`, a lower bound, if no number of random examples
    reached the accuracy. None where undefined.
    """
    S = len(found.seeds)
    rng = np.random.default_rng(seed)
    samples = [np.arange(S)] + [rng.integers(S, size=S) for _ in range(draws if S > 1 else 0)]
    curves = [iid_curve(found, originals, sample) for sample in samples]
    rows = []
    for (strategy, added), accuracy_S in found.of.items():
        examples = originals + added
        mean = np.array([accuracy_S[sample].mean() for sample in samples])
        equal = np.array([examples_for(*curve, value) for curve, value in zip(curves, mean, strict=True)])
        gain = mean - [np.interp(examples, *curve) for curve in curves]
        row = {"strategy": strategy, "added": added, "examples": examples, "seeds": S}
        row |= {"accuracy": mean[0], "interval": _interval(mean), "gain": gain[0], "gain_interval": _interval(gain)}
        if strategy != IID:
            row |= {"ratio": min(equal[0], curves[0][0][-1]) / examples, "censored": bool(np.isinf(equal[0]))}
            row |= {"ratio_interval": _interval(equal / examples)} | _share(
                found, added, gain, samples, curves, examples
            )
        rows.append(row)
    return sorted(
        rows, key=lambda row: (row["strategy"] != IID, row["strategy"] != ORACLE, row["strategy"], row["added"])
    )


def iid_curve(found: Accuracies, originals: int, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic regression of accuracy on the number of random examples, over the seeds of `sample`."""
    points = {0: found.base} | {added: values for (strategy, added), values in found.of.items() if strategy == IID}
    sizes = np.array(sorted(points))
    return originals + sizes, isotonic_regression([points[size][sample].mean() for size in sizes]).x


def examples_for(sizes: np.ndarray, accuracy: np.ndarray, value: float) -> float:
    """The smallest number of examples at which the piecewise linear curve reaches the accuracy; inf beyond it.

    The first size for an accuracy below the curve.
    """
    if value > accuracy[-1]:
        return np.inf
    right = int(np.argmax(accuracy >= value))
    if right == 0:
        return float(sizes[0])
    left = right - 1
    part = (value - accuracy[left]) / (accuracy[right] - accuracy[left])
    return float(sizes[left] + part * (sizes[right] - sizes[left]))


def _share(found: Accuracies, added: int, gain: np.ndarray, samples, curves, examples: int) -> dict:
    if (ORACLE, added) not in found.of:
        return {"share_of_oracle": None, "share_interval": None}
    best = np.array([found.of[ORACLE, added][sample].mean() for sample in samples])
    best = best - [np.interp(examples, *curve) for curve in curves]
    share = np.divide(gain, best, out=np.full(len(gain), np.nan), where=best > 0)  # else there is nothing to gain
    known = share[np.isfinite(share)]
    return {"share_of_oracle": share[0], "share_interval": _interval(share) if len(known) == len(share) else None}


def _interval(values: np.ndarray) -> list[float] | None:
    """Percentiles of the draws after the first value; None without draws. Infinite: beyond the curve."""
    if len(values) == 1:
        return None
    return np.quantile(values[1:], [0.025, 0.975], method="inverted_cdf").tolist()
