"""The members of a curation by their names, and the strategies by theirs; imported without anything heavy.

A member is called by what it is trained on: `base-seed0` on the original set, `oracle+160-seed0` on 160 more examples
that the strategy `oracle` collected.
"""

import re
from typing import NamedTuple

BASE, IID, ORACLE = "base", "iid", "oracle"
STRATEGIES = (
    "pre_memorization",
    "pre_memorization_published",
    "early_accuracy",
    "high_nll",
    "learnability",
    "difficulty",
    "ifd",
    IID,
    "random",
    ORACLE,
)  # of `selection.py`


class Job(NamedTuple):
    """What a member is trained on."""

    strategy: str
    added: int  # examples beside the originals
    seed: int

    @property
    def name(self) -> str:
        return f"{self.strategy}{f'+{self.added}' if self.added else ''}-seed{self.seed}"


def job_of(name: str) -> Job | None:
    """The job of a member; None for a name that is none."""
    match = re.fullmatch(r"([a-z_]+)(?:\+([1-9]\d*))?-seed(\d+)", name)
    if match is None or (match[1] == BASE) != (match[2] is None):
        return None
    return Job(match[1], int(match[2] or 0), int(match[3]))
