"""How far the shrunk estimate of finished finetunes ended from their test accuracy, by task.

Each run has its own threshold (`heldout_quantile`), and is counted at its last evaluation. The counts are those of
`benchmarks/estimates.py` on the sets of docs/study.md.
"""

from typing import NamedTuple


class Record(NamedTuple):
    """Finetunes of one task, and how many of them ended within 5 and 10 points of their test accuracy."""

    of: str
    runs: int
    within_5: int
    within_10: int


RECORDS = {
    "gsm8k": Record("of Llama3 8B on GSM8K", 13, 11, 13),
    "math": Record("of Llama3 8B on MATH", 11, 11, 11),
    "arithmetic": Record("of a small Llama on arithmetic", 18, 8, 15),
}


def sentence(task: str) -> str:
    """What is on record for runs of a task, or, if there are none, for those of all others."""
    if task in RECORDS:
        of, runs, five, ten = RECORDS[task]
        return (
            f"Of {runs} finetunes {of} on record, it ended within 5 points of the test accuracy in {five}, within 10 "
            f"in {ten}."
        )
    runs, five, ten = (sum(record[i] for record in RECORDS.values()) for i in (1, 2, 3))
    others = ", ".join(record.of for record in RECORDS.values())
    return (
        f"No finetunes of this task are on record; of {runs} others ({others}) it ended within 5 points of the test "
        f"accuracy in {five}, within 10 in {ten}."
    )
