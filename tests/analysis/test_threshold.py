import math

import numpy as np
import pytest

from premem_jax.analysis import threshold
from premem_jax.errors import UserError
from tests.analysis.traces import released_run


def test_heldout_quantile_takes_the_evaluation_with_the_lowest_mean():
    draw = np.random.default_rng(0)
    nll_ME = draw.uniform(0.2, 1.0, (4, 101)) + np.array([0.3, 0.0, 0.1, np.nan])[:, None]
    nll_ME[1, 100] = np.nan
    chosen = threshold.heldout_quantile([nll_ME], quantile=0.02)
    ordered = sorted(nll_ME[1, :100])  # the 0.02 quantile of 100 values lies between the second and the third
    assert math.log(chosen.perplexity) == pytest.approx(ordered[1] + 0.98 * (ordered[2] - ordered[1]))
    assert chosen.nll == pytest.approx(math.log(chosen.perplexity))
    assert chosen.detail["evaluation"] == 1
    assert chosen.detail["heldout_examples"] == 100


def test_heldout_quantile_finds_the_tuned_threshold_of_the_released_half_run():
    run = released_run("6ep half lr2e-05")
    chosen = threshold.heldout_quantile([run["train_nll"][:, ~run["trained"]]])
    assert chosen.detail["evaluation"] == 1
    assert chosen.nll == pytest.approx(0.1003, abs=1e-3)  # facts/threshold.md: published 0.1003, the quantile 0.100


@pytest.mark.parametrize(
    ("nll_ME", "quantile", "message"),
    [
        (np.full((2, 49), 0.5), 0.01, "at least 50"),
        (np.full((2, 80), np.nan), 0.01, "no threshold to take"),
        (np.zeros((0, 80)), 0.01, "no threshold to take"),
        (np.full((1, 80), 0.5), 1.0, "between 0 and 1"),
    ],
)
def test_heldout_quantile_says_what_it_needs(nll_ME, quantile, message):
    with pytest.raises(UserError, match=message):
        threshold.heldout_quantile([nll_ME], quantile)


def test_a_diverged_evaluation_is_not_chosen():
    nll_ME = np.stack([np.full(60, np.inf), np.full(60, 0.4), np.full(60, np.nan)])
    assert threshold.heldout_quantile([nll_ME]).nll == pytest.approx(0.4)


def test_given_keeps_the_perplexity_and_refuses_less_than_one():
    assert threshold.given(1.5).perplexity == 1.5
    with pytest.raises(UserError, match="at least 1"):
        threshold.given(0.5)
