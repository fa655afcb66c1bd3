"""Curves by response type, from a trace made of known log-likelihoods."""

import numpy as np

from premem_jax.analysis import response_curves
from premem_jax.analysis.trace import read_trace, write_evaluation

TOKENS = np.array([4, 2])
# (M, E) log-likelihoods at steps 0, 5 and 10.
CHOSEN = np.array([[-8.0, -4], [-6, -3], [-7, -5]])
REJECTED = np.array([[-6.0, -3], [-5, -2], [-9, -4]])


def trace(folder):
    for m, step in enumerate((0, 5, 10)):
        columns = lambda total, m=m: {
            "example": np.array([7, 3]),
            "target_nll": -total[m] / TOKENS,
            "target_tokens": TOKENS,
        }
        splits = {"train chosen": columns(CHOSEN), "train rejected": columns(REJECTED), "test": columns(CHOSEN)}
        if m:
            splits["train greedy path"] = columns(CHOSEN / 2)
        write_evaluation(folder, step, step / 5, splits, {"train_entropy": 1.0 + m})
    return read_trace(folder)


def test_curves_are_means_of_summed_log_likelihoods(tmp_path):
    found = trace(tmp_path)
    curves = response_curves.curves_by_type(found)
    np.testing.assert_allclose(curves["chosen"], [-6, -4.5, -6], rtol=1e-6)
    np.testing.assert_allclose(curves["greedy path"], [np.nan, -2.25, -3], rtol=1e-6)
    assert set(curves) == {"chosen", "rejected", "greedy path"}
    per_token = response_curves.curves_by_type(found, per_token=True)["chosen"]
    np.testing.assert_allclose(per_token, [-2, -1.5, (-7 / 4 - 2.5) / 2], rtol=1e-6)
    np.testing.assert_allclose(response_curves.squeezing(found)["entropy"], [1, 2, 3])


def test_margins_are_beyond_the_reference(tmp_path):
    found = response_curves.margins(trace(tmp_path), since=5)
    np.testing.assert_allclose(found["margin"], [-0.5, 0, ((2 - -1) + (-1 - -1)) / 2], atol=1e-6)
    np.testing.assert_allclose(found["reward_accuracy"], [0, 0, 0.5])
    assert np.isnan(response_curves.margins(trace(tmp_path), since=4)["margin"]).all()


def test_the_summary_counts_from_the_first_update_on_pairs(tmp_path):
    found = response_curves.summary(trace(tmp_path), since=5)
    assert found == {
        **{"change_chosen": -1.5, "change_rejected": -3.0, "change_greedy": -0.75},
        **{"margin": 1.5, "reward_accuracy": 0.5},
    }
