"""Counts of estimates that agree with test accuracy, against the ends of the intervals and against variances."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from premem_jax.analysis.coverage import coverage, sentence
from premem_jax.analysis.curves import interval

ACCURACY, ERROR = st.floats(0, 1), st.floats(0.001, 0.2)
RUNS = st.lists(st.tuples(ACCURACY, ERROR, ACCURACY, ERROR), max_size=8)


def summary(estimate, error, test, test_error):
    ends = dict(
        estimate_interval=list(interval(estimate, error)), test_accuracy_interval=list(interval(test, test_error))
    )
    return dict(estimate=estimate, test_accuracy=test) | ends


@given(RUNS)
def test_each_count_is_that_of_its_definition(runs):
    rows = {str(i): summary(*run) for i, run in enumerate(runs)}
    unknown = dict(estimate=0.5, estimate_interval=None, test_accuracy=0.5, test_accuracy_interval=[0.4, 0.6])
    found = coverage(rows | {"one without an interval": unknown})
    overlap = contains = joint = 0
    for row, (estimate, error, test, test_error) in zip(rows.values(), runs, strict=True):
        (low, high), (test_low, test_high) = row["estimate_interval"], row["test_accuracy_interval"]
        overlap += low <= test_high and test_low <= high
        contains += low <= test <= high
        joint += (estimate - test) ** 2 <= 1.96**2 * (error**2 + test_error**2)
    assert (found["of"], found["intervals_overlap"]) == (len(runs), overlap)
    assert (found["within_joint_error"], found["estimate_contains"]) == (joint, contains)
    off, half, test_half = np.transpose(list(found["differences"].values())) if runs else np.empty((3, 0))
    np.testing.assert_allclose(off, [a - b for a, _, b, _ in runs])
    np.testing.assert_allclose(np.transpose([half, test_half]).ravel(), [1.96 * e for r in runs for e in r[1::2]])
    assert f"Of {len(runs)} runs" in sentence(found) and f"overlap in {overlap}," in sentence(found)
