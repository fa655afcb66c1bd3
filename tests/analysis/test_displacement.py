"""Displacement and its rank correlation with a score of before, on traces made of known log-likelihoods."""

import numpy as np
import pytest
from scipy import stats

from premem_jax.analysis.displacement import displacement, predicted
from premem_jax.analysis.trace import read_trace, write_evaluation

IDS = np.arange(40) * 3


def trace(folder, change):
    """Two tokens a response; `change` of the sum between steps 4 and 8."""
    for step, total in ((0, np.full(40, -9.0)), (4, np.full(40, -6.0)), (8, -6.0 + change)):
        columns = {"example": IDS, "target_nll": -total / 2, "target_tokens": np.full(40, 2)}
        write_evaluation(folder, step, step / 4, {"train chosen": columns}, {})
    return read_trace(folder)


def test_displacement_is_the_change_since_preference_training_began(tmp_path):
    change = np.random.default_rng(0).normal(size=40)
    found = displacement(trace(tmp_path, change), since=4)
    assert list(found) == IDS.tolist()
    np.testing.assert_allclose(list(found.values()), change, atol=1e-5)
    assert displacement(trace(tmp_path, change), since=5) == {}


def test_the_correlation_is_spearmans_and_lies_in_its_interval(tmp_path):
    rng = np.random.default_rng(1)
    change = rng.normal(size=40)
    ches = {int(id): float(-x + 0.5 * rng.normal()) for id, x in zip(IDS, change, strict=True)} | {999: 1.0}
    found = predicted(ches, trace(tmp_path, change), since=4)
    expected = stats.spearmanr([ches[id] for id in IDS.tolist()], change).statistic
    assert found["ches_correlation"] == pytest.approx(expected, abs=2e-3) and found["ches_pairs"] == 40
    assert -1 <= found["ches_correlation_low"] < expected < found["ches_correlation_high"] < 0


def test_without_variation_there_is_no_correlation(tmp_path):
    assert predicted(dict.fromkeys(IDS.tolist(), 1.0), trace(tmp_path, np.arange(40.0)), since=4) == {}
