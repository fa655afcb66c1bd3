"""Which of several families of models acquires a skill earlier: forecasts compared, and how that turned out.

Families, such as two mixes of pretraining data, are compared on one axis, their loss on the same held-out text. Earlier
is at a higher loss.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from scipy import stats

SURE = 0.9  # two-sided, of the sign of a difference


def compared(found: Mapping[str, Mapping], said: Mapping[str, Mapping], gates: Mapping[str, Mapping]) -> list[dict]:
    """Each pair of families: who is to be earlier, whether that should be trusted, and who was.

    Args:
      found: forecasts by family.
      said: their verdicts, of those whose truth is known.
      gates: of the weak models of each, with `sizes`: whether sizes agree at equal loss (None: not known).

    Returns:
      For each pair `families`, `difference` of the elbows in nats (first minus second, None where one is refused) and
      its standard `error`, `doubts` (empty: to be trusted), and, once known, the `truth` and whether the sign was
      `right`; `others` are the same difference and sign by simpler answers.
    """
    return [_pair(pair, found, said, gates) for pair in combinations(found, 2)]


def _pair(pair: tuple[str, str], found: Mapping, said: Mapping, gates: Mapping) -> dict:
    truth = _difference([said[name]["elbow"] if name in said else None for name in pair])
    value = _difference([found[name]["elbow"] for name in pair])
    errors = [_error(found[name]["interval"]) for name in pair]
    error = None if value is None else float(np.hypot(*errors))
    known = [name for name in found[pair[0]]["baselines"] if name in found[pair[1]]["baselines"]]
    simple = {name: _difference([found[one]["baselines"][name]["elbow"] for one in pair]) for name in known}
    title = lambda name: found[pair[0]]["baselines"][name]["title"]
    return {
        "families": list(pair),
        "difference": value,
        "error": error,
        "doubts": doubts(pair, found, gates, value, error),
        "truth": truth,
        "right": _right(value, truth),
        "others": {
            name: {"title": title(name), "difference": one, "right": _right(one, truth)} for name, one in simple.items()
        },
    }


def doubts(
    pair: tuple[str, str], found: Mapping, gates: Mapping, value: float | None, error: float | None
) -> list[str]:
    """Why a choice between two families should not rest on their forecasts; known before either is trained further."""
    said = [f"{name}: no forecast, {found[name]['refused']}" for name in pair if found[name]["refused"]]
    if value is not None and abs(value) < stats.norm.ppf((1 + SURE) / 2) * error:
        said.append(f"the elbows differ by {abs(value):.3f} nats, with a standard error of {error:.3f}")
    low, high = max(found[name]["losses"][0] for name in pair), min(found[name]["losses"][1] for name in pair)
    if low >= high:
        said.append("no loss is in the range of both: their curves are compared where one of them has no model")
    for name in pair:
        if (same := gates.get(name, {}).get("sizes")) and not same["holds"]:
            said.append(f"{name}: sizes disagree at equal loss, so its curve is not one of the loss alone")
        if found[name]["diagnostics"] and not found[name]["diagnostics"]["converged"]:
            said.append(f"{name}: the chains of the posterior have not met")
    return said


def _difference(values: list[float | None]) -> float | None:
    first, second = values
    return None if first is None or second is None else first - second


def _error(interval: list[float] | None) -> float:
    """Standard error of a normal distribution with this 90 % interval."""
    return float(np.ptp(interval) / (2 * stats.norm.ppf(0.95))) if interval else float("nan")


def _right(value: float | None, truth: float | None) -> bool | None:
    return None if value is None or truth is None else bool(value * truth > 0)
