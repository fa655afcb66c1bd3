"""Which pairs lose likelihood of their chosen response in preference training, and could it be told before?"""

from collections.abc import Mapping

import numpy as np

from premem_jax.analysis import bootstrap, response_curves
from premem_jax.analysis.agreement import Points, rank_correlation
from premem_jax.analysis.trace import Trace

DRAWS = 2000


def displacement(trace: Trace, since: int, of: str = "train") -> dict[int, float]:
    """By example: the change of log π(y⁺) in nats from step `since` to the last at which it was measured.

    Below 0 is the likelihood displacement of Razin et al. (arXiv 2410.08847).
    """
    chosen, start = response_curves.response_types(trace, of).get("chosen"), np.flatnonzero(trace.steps == since)
    if chosen is None or not len(start):
        return {}
    log_ME = response_curves.log_likelihood(chosen)
    measured = np.flatnonzero(np.isfinite(log_ME).any(axis=1))
    change_E = log_ME[measured[-1]] - log_ME[start[0]]
    return {int(id): float(x) for id, x in zip(chosen.example, change_E, strict=True) if np.isfinite(x)}


def predicted(ches: Mapping[int, float], trace: Trace, since: int) -> dict[str, float]:
    """Spearman's rank correlation of each pair's CHES before training with its displacement, and its 95 % interval.

    The interval is a bootstrap over pairs of one run, so it says nothing about other seeds. Empty where the correlation
    is undefined.
    """
    changed = {id: x for id, x in displacement(trace, since).items() if id in ches}
    x, y = np.array([ches[id] for id in changed]), np.array(list(changed.values()))
    if not np.isfinite(value := rank_correlation(x, y)):
        return {}
    points = Points(x, y, np.arange(len(x)))
    low, high = bootstrap.interval(points, ["rank_correlation"], DRAWS, seed=0)["rank_correlation"]
    named = {"ches_correlation": value, "ches_correlation_low": low, "ches_correlation_high": high}
    return {"ches_pairs": len(x), **{name: round(x, 4) for name, x in named.items() if np.isfinite(x)}}
