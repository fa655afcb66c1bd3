import math

import numpy as np
import pytest

from premem_jax.analysis import threshold
from premem_jax.errors import UserError
from tests.analysis.traces import released_run


def test_heldout_quantile_takes_the_lowest_of_all_evaluations():
    draw = np.random.default_rng(0)
    nll_ME = draw.uniform(0.2, 1.0, (5, 101)) + np.array([0.3, 0.0, 0.1, -0.2, np.nan])[:, None]
    nll_ME[1, 100] = np.nan
    nll_ME[3, 49:] = np.nan  # the lowest by far, but of 49 values
    chosen = threshold.heldout_quantile(nll_ME, quantile=0.02)
    ordered = [sorted(row[np.isfinite(row)]) for row in nll_ME[:3]]
    # The 0.02 quantile of 101 values is the third; that of 100 lies between the second and the third.
    expected = [ordered[0][2], ordered[1][1] + 0.98 * (ordered[1][2] - ordered[1][1]), ordered[2][2]]
    assert chosen.nll == pytest.approx(min(expected))
    assert math.log(chosen.perplexity) == pytest.approx(chosen.nll)
    assert chosen.detail == {"quantile": 0.02, "evaluation": 1, "heldout_examples": 100}


def test_at_any_evaluation_all_but_one_percent_of_the_held_out_are_less_likely():
    """And at one of them the hundredth part lies right below the threshold."""
    nll_ME = np.random.default_rng(1).gamma(4, 0.1, (6, 1001)) + np.linspace(0.2, 0, 6)[:, None]
    below_M = np.sum(nll_ME < threshold.heldout_quantile(nll_ME).nll - 1e-12, axis=1)
    assert below_M.max() == 10 and below_M.argmax() == threshold.heldout_quantile(nll_ME).detail["evaluation"]


def test_runs_without_held_out_examples_take_the_lowest_of_the_others():
    draw = np.random.default_rng(2)
    a, b, few = draw.gamma(4, 0.1, (3, 200)), draw.gamma(4, 0.08, (2, 300)), draw.gamma(4, 0.01, (2, 49))
    chosen = threshold.of_runs([a, None, b, few], 0.03)
    lowest = [min(np.quantile(row, 0.03) for row in rows) for rows in (a, b)]
    assert [one.nll for one in chosen] == pytest.approx([lowest[0], lowest[1], lowest[1], lowest[1]])
    assert [bool(one.detail) for one in chosen] == [True, False, True, False]
    with pytest.raises(UserError, match="no run has the target NLL of at least 50"):
        threshold.of_runs([None, few])


def test_heldout_quantile_finds_the_tuned_threshold_of_the_released_half_run():
    run = released_run("6ep half lr2e-05")
    chosen = threshold.heldout_quantile(run["train_nll"][:, ~run["trained"]])
    assert chosen.detail["evaluation"] == 2
    assert chosen.nll == pytest.approx(0.1003, abs=4e-3)  # published: 0.1003


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
    assert threshold.heldout_quantile(nll_ME).nll == pytest.approx(0.4)


def test_given_keeps_the_perplexity_and_refuses_less_than_one():
    assert threshold.given(1.5).perplexity == 1.5
    with pytest.raises(UserError, match="at least 1"):
        threshold.given(0.5)
