"""Whether the estimates of finished runs agree with their test accuracies, within the errors of the two.

Summaries are `summary.json` of runs, which have a value `NAME` and its 95 % interval `NAME_interval`.
"""

import math
from collections.abc import Mapping
from typing import Any

AGREE = {  # from the widest sense to the strictest: difference, half intervals of estimate and of test accuracy
    "intervals_overlap": lambda off, half, test_half: off <= half + test_half,
    "within_joint_error": lambda off, half, test_half: off <= math.hypot(half, test_half),
    "estimate_contains": lambda off, half, test_half: off <= half,
}


def coverage(summaries: Mapping[str, Mapping]) -> dict[str, Any]:
    """In how many runs the estimate agrees with the test accuracy.

    Returns:
      `differences`: the name of each run that has both with intervals → [estimate - test accuracy, half interval of
      the estimate, half interval of the test accuracy]; `of`, their number. Of these, `intervals_overlap`: the two
      95 % intervals do; `within_joint_error`: the difference is at most the root of the summed squared halves, the
      95 % interval of a difference of independent values; `estimate_contains`: the estimate's interval contains the
      measured test accuracy.
    """
    differences = {}
    for name, summary in summaries.items():
        half, test_half = half_interval(summary, "estimate"), half_interval(summary, "test_accuracy")
        if half is not None and test_half is not None:
            differences[name] = [summary["estimate"] - summary["test_accuracy"], half, test_half]
    values = differences.values()
    counts = {name: sum(agree(abs(off), *halves) for off, *halves in values) for name, agree in AGREE.items()}
    return {"of": len(differences), **counts, "differences": differences}


def sentence(found: Mapping[str, Any]) -> str:
    """The counts for people."""
    of, overlap, joint, contains = (found[name] for name in ("of", *AGREE))
    return (
        f"Of {of} runs, the 95 % intervals of estimate and test accuracy overlap in {overlap}, the two differ by less "
        f"than the error of their difference in {joint}, and the estimate's interval contains the test accuracy in "
        f"{contains}."
    )


def half_interval(summary: Mapping[str, Any], name: str) -> float | None:
    """Half of the 95 % interval of a value, of which an end may be cut off at 0 or 1; None if it has none."""
    value, ends = summary.get(name), summary.get(f"{name}_interval")
    return None if value is None or ends is None else max(value - ends[0], ends[1] - value)
