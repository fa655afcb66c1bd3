import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.analysis import threshold
from premem_jax.errors import UserError
from tests.analysis.traces import released_run


def test_each_evaluation_takes_its_own_quantile():
    draw = np.random.default_rng(0)
    nll_ME = draw.uniform(0.2, 1.0, (5, 101)) + np.array([0.3, 0.0, 0.1, -0.2, np.nan])[:, None]
    nll_ME[1, 100] = np.nan
    nll_ME[3, 49:] = np.nan  # the lowest by far, but of 49 values
    chosen = threshold.heldout_quantile(nll_ME, quantile=0.02)
    ordered = [sorted(row[np.isfinite(row)]) for row in nll_ME[:3]]
    # The 0.02 quantile of 101 values is the third; that of 100 lies between the second and the third.
    expected = [ordered[0][2], ordered[1][1] + 0.98 * (ordered[1][2] - ordered[1][1]), *[ordered[2][2]] * 3]
    np.testing.assert_allclose(chosen.nll(5), expected)
    assert chosen.at_end == pytest.approx(math.exp(expected[-1]))
    assert chosen.detail == {"quantile": 0.02, "heldout_examples": 100} and not chosen.looks_at_test


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_threshold_of_an_evaluation_does_not_change_later(seed, evaluations):
    """Once there is one: what is measured afterwards, and what is lost, leave it as it is."""
    rng = np.random.default_rng(seed)
    nll_ME = rng.gamma(4, 0.1, (evaluations, 60))
    nll_ME[rng.random(evaluations) < 0.4] = np.nan
    if not np.isfinite(nll_ME).any():
        return
    whole, first = threshold.heldout_quantile(nll_ME).nll(evaluations), np.isfinite(nll_ME).any(axis=1).argmax()
    for m in range(first, evaluations):
        until = threshold.heldout_quantile(nll_ME[: m + 1]).nll(m + 1)
        np.testing.assert_array_equal(until, whole[: m + 1])


def test_at_each_evaluation_all_but_one_percent_of_the_held_out_are_less_likely():
    nll_ME = np.random.default_rng(1).gamma(4, 0.1, (6, 1001)) + np.linspace(0.2, 0, 6)[:, None]
    limit_M = threshold.heldout_quantile(nll_ME).nll(6)
    assert np.sum(nll_ME < limit_M[:, None] - 1e-12, axis=1).tolist() == [10] * 6


def test_runs_without_held_out_examples_take_the_evaluation_with_the_lowest_mean():
    draw = np.random.default_rng(2)
    a, b, few = draw.gamma(4, 0.1, (3, 200)), draw.gamma(4, 0.08, (2, 300)), draw.gamma(4, 0.01, (2, 49))
    chosen = threshold.of_runs([a, None, b, few], 0.03)
    for rows, one in ((a, chosen[0]), (b, chosen[2])):
        np.testing.assert_allclose(one.nll(len(rows)), [np.quantile(row, 0.03) for row in rows])
    lowest = np.quantile(min([*a, *b], key=np.mean), 0.03)
    assert [float(chosen[i].nll(1)[0]) for i in (1, 3)] == pytest.approx([lowest] * 2)
    assert [bool(one.detail) for one in chosen] == [True, False, True, False]
    with pytest.raises(UserError, match="no run has the target NLL of at least 50"):
        threshold.of_runs([None, few])


def test_the_quantile_of_the_released_half_run_is_near_the_tuned_threshold():
    run = released_run("6ep half lr2e-05")
    limit_M = threshold.heldout_quantile(run["train_nll"][:, ~run["trained"]]).nll(6)
    assert limit_M.argmin() == 2 and limit_M[2] == pytest.approx(0.1003, abs=4e-3)  # published: 0.1003


@pytest.mark.parametrize(
    ("nll_ME", "quantile", "message"),
    [
        (np.full((2, 49), 0.5), 0.01, "at least 50"),
        (np.full((2, 80), np.nan), 0.01, "there are 0 finite"),
        (np.zeros((0, 80)), 0.01, "there are 0 finite"),
        (np.full((1, 80), 0.5), 1.0, "between 0 and 1"),
    ],
)
def test_heldout_quantile_says_what_it_needs(nll_ME, quantile, message):
    with pytest.raises(UserError, match=message):
        threshold.heldout_quantile(nll_ME, quantile)


def test_a_diverged_evaluation_is_not_chosen():
    nll_ME = np.stack([np.full(60, np.inf), np.full(60, 0.4), np.full(60, np.nan)])
    np.testing.assert_allclose(threshold.heldout_quantile(nll_ME).nll(3), 0.4)


def test_given_keeps_the_perplexity_and_refuses_less_than_one():
    assert threshold.given(1.5).perplexity == 1.5 == threshold.given(1.5).at_end
    with pytest.raises(UserError, match="at least 1"):
        threshold.given(0.5)
