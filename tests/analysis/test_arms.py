"""Arms with seeds: pairs, intervals and signs against SciPy's own paired test."""

import numpy as np
import pytest
from scipy import stats

from premem_jax.analysis.arms import arm_of, contrasts, means

rng = np.random.default_rng(0)
VALUES = {arm: rng.normal(i, 1, 5) for i, arm in enumerate(("sft-off", "both-off", "sft-on", "both-on"))}
RUNS = {
    f"{arm}-seed{seed}": {"x": float(v), "y": None} for arm, values in VALUES.items() for seed, v in enumerate(values)
}


def test_names_give_arm_and_seed():
    assert arm_of("both-off-seed12") == ("both-off", 12) and arm_of("sft-dpo") == ("sft-dpo", 0)


def test_arms_that_differ_in_one_part_are_compared_seed_by_seed():
    found = {(c.of, c.against): c for c in contrasts(RUNS, ["x", "y"])}
    assert set(found) == {
        *(("both-off", "sft-off"), ("sft-on", "sft-off"), ("both-on", "both-off"), ("both-on", "sft-on")),
    }
    for (of, against), contrast in found.items():
        test = stats.ttest_rel(VALUES[of], VALUES[against])
        assert contrast.mean == pytest.approx(np.mean(VALUES[of] - VALUES[against]))
        assert (contrast.low, contrast.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert (contrast.above, contrast.seeds) == ((VALUES[of] > VALUES[against]).sum(), 5)
    assert means(RUNS, ["x"])["both-on"]["x"] == pytest.approx(VALUES["both-on"].mean())


def test_a_seed_that_one_arm_lacks_is_left_out():
    runs = {name: values for name, values in RUNS.items() if name != "both-off-seed3"}
    contrast = contrasts(runs, ["x"])[0]
    rest = [0, 1, 2, 4]
    assert contrast.seeds == 4 and contrast.mean == pytest.approx(
        np.mean((VALUES["both-off"] - VALUES["sft-off"])[rest])
    )
    alone = contrasts({"a": {"x": 1.0}, "b": {"x": 3.0}}, ["x"])[0]
    assert alone.text == "+2, 1 of 1 above 0" and np.isnan(alone.low)
