"""Arms of a study with several seeds: their differences, paired by seed, with signs counted.

A run is called ARM-seedN, and parts of an arm's name are joined by dashes, as in `both-off`. Two arms are compared if
they differ in one part.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Runs = Mapping[str, Mapping[str, float | None]]  # run → column → value


class Contrast(NamedTuple):
    """Mean difference `of` minus `against` in one column over the seeds that both have; NaN limits for one seed."""

    of: str
    against: str
    column: str
    seeds: int
    mean: float
    low: float  # of Student's 95 % interval
    high: float
    above: int  # seeds in which the difference is above 0

    @property
    def text(self) -> str:
        limits = f" [{self.low:.3g}, {self.high:.3g}]" if np.isfinite(self.low) else ""
        return f"{self.mean:+.3g}{limits}, {self.above} of {self.seeds} above 0"


def arm_of(run: str) -> tuple[str, int]:
    """Name of the arm and the seed; without a seed in the name, 0."""
    found = re.fullmatch(r"(.+)-seed(\d+)", run)
    return (found[1], int(found[2])) if found else (run, 0)


def by_arm(runs: Runs) -> dict[str, dict[int, Mapping[str, float | None]]]:
    """arm → seed → column → value."""
    arms: dict[str, dict] = {}
    for run, values in runs.items():
        arm, seed = arm_of(run)
        arms.setdefault(arm, {})[seed] = values
    return arms


def means(runs: Runs, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each arm, the mean over its seeds; NaN where a column is unknown."""
    known = lambda seeds, column: [row[column] for row in seeds.values() if row.get(column) is not None]
    mean = lambda values: float(np.mean(values)) if values else np.nan
    return {arm: {column: mean(known(seeds, column)) for column in columns} for arm, seeds in by_arm(runs).items()}


def contrasts(runs: Runs, columns: Sequence[str]) -> list[Contrast]:
    """All comparisons of two arms that differ in one part, the later one against the earlier one."""
    arms = by_arm(runs)
    found = []
    for against, of in itertools.combinations(arms, 2):
        parts = [name.split("-") for name in (against, of)]
        if len(parts[0]) != len(parts[1]) or sum(a != b for a, b in zip(*parts, strict=True)) != 1:
            continue
        for column in columns:
            pairs = [
                (arms[of][seed].get(column), row.get(column)) for seed, row in arms[against].items() if seed in arms[of]
            ]
            differences = [a - b for a, b in pairs if a is not None and b is not None]
            if differences:
                found.append(_contrast(of, against, column, np.array(differences)))
    return found


def _contrast(of: str, against: str, column: str, differences: np.ndarray) -> Contrast:
    n, mean, half = len(differences), float(differences.mean()), np.nan
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return Contrast(of, against, column, n, mean, mean - half, mean + half, int((differences > 0).sum()))
