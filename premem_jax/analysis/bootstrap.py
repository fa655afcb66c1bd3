"""Bootstrap over runs for the statistics of `agreement.py`, vectorized over draws.

A draw takes each run a number of times, the weight of its points, so sums over drawn points are weighted sums over all
points.
"""

import numpy as np

from premem_jax.analysis.agreement import STATISTICS, Points

_AT_ONCE = 2**22  # weights held in memory


def interval(p: Points, names: list[str], draws: int, seed: int, level: float = 0.95) -> dict[str, list]:
    """Bootstrap percentile intervals [low, high] of `STATISTICS`, over runs, with `draws` draws.

    Draws in which a statistic is undefined (for example, one run with one evaluation repeated) are dropped; NaN if none
    is left.
    """
    rng = np.random.default_rng(seed)
    runs, run_N = np.unique(p.run, return_inverse=True)
    R, N = len(runs), len(p.x)
    drawn = {name: [] for name in names}
    for first in range(0, draws if R > 1 else 0, max(1, _AT_ONCE // max(N, 1))):
        count = min(draws - first, max(1, _AT_ONCE // N))
        times_DR = np.stack([np.bincount(rng.integers(R, size=R), minlength=R) for _ in range(count)])
        weights_DN = times_DR[:, run_N].astype(np.float64)
        for name in names:
            drawn[name].append(weighted(name, p.x, p.y, weights_DN))
    tails = [50 - 50 * level, 50 + 50 * level]
    out = {}
    for name, values in drawn.items():
        known = np.concatenate([np.zeros(0), *values])
        known = known[np.isfinite(known)]
        out[name] = np.percentile(known, tails).tolist() if len(known) else [np.nan, np.nan]
    return out


def weighted(name: str, x_N: np.ndarray, y_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """`STATISTICS[name]` (D,) over points that are repeated by their weights."""
    if name not in STATISTICS:
        raise ValueError(f"no statistic {name!r}; there are {', '.join(STATISTICS)}")
    count_D = weights_DN.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "mae":
            return weights_DN @ np.abs(y_N - x_N) / count_D
        if name == "r2_identity":
            y_DN = _centered(np.broadcast_to(y_N, weights_DN.shape), weights_DN)
            left_D = weights_DN @ (y_N - x_N) ** 2 / np.einsum("dn,dn,dn->d", weights_DN, y_DN, y_DN)
            return np.where(_varies(y_N, weights_DN), 1 - left_D, np.nan)
        ranked = name == "rank_correlation"
        of = _ranks if ranked else lambda v_N, weights_DN: np.broadcast_to(v_N, weights_DN.shape)
        x_DN, y_DN = (_centered(of(v_N, weights_DN), weights_DN) for v_N in (x_N, y_N))
        xy, xx, yy = (
            np.einsum("dn,dn,dn->d", weights_DN, *pair) for pair in ((x_DN, y_DN), (x_DN, x_DN), (y_DN, y_DN))
        )
        value_D = xy / np.sqrt(xx * yy) if ranked else xy**2 / (xx * yy)
        return np.where(_varies(x_N, weights_DN) & _varies(y_N, weights_DN), value_D, np.nan)


def _centered(values_DN: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    mean_D = np.einsum("dn,dn->d", weights_DN, values_DN) / weights_DN.sum(axis=1)
    return values_DN - mean_D[:, None]


def _ranks(values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """Ranks (D, N) among the points of each draw, from 1; ties have their mean rank."""
    distinct, place_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(place_N, kind="stable")
    starts = np.searchsorted(place_N[order_N], np.arange(len(distinct)))
    weight_DK = np.add.reduceat(weights_DN[:, order_N], starts, axis=1)  # of each distinct value
    rank_DK = np.cumsum(weight_DK, axis=1) - (weight_DK - 1) / 2
    return rank_DK[:, place_N]


def _varies(values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """Whether the values of the drawn points vary (D,), as in `agreement.py`."""
    there_DN = weights_DN > 0
    high_D = np.where(there_DN, values_N, -np.inf).max(axis=1)
    return high_D - np.where(there_DN, values_N, np.inf).min(axis=1) > 1e-150
