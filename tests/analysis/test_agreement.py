"""Statistics over points against plain loops in float64, and against SciPy."""

import math

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from premem_jax.analysis import agreement, bootstrap
from premem_jax.analysis.agreement import Points

VALUES = st.one_of(st.sampled_from([0.0, 0.2, 0.4, 1.0]), st.floats(0, 1))


@st.composite
def point_sets(draw, least=1):
    count = draw(st.integers(least, 12))
    x, y = (draw(arrays.arrays(np.float64, count, elements=VALUES)) for _ in "xy")
    run = np.sort(draw(arrays.arrays(np.int64, count, elements=st.integers(0, 3))))
    return Points(x, y, run)


def close(a, b):
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def spread_enough(*columns):
    """Far from constant, so that a ratio of rounding errors is not compared."""
    return all(np.ptp(column) == 0 or np.std(column) > 1e-3 for column in columns)


@given(point_sets())
def test_statistics_are_their_formulas(p):
    if not spread_enough(p.x, p.y):
        return
    x, y = p.x.tolist(), p.y.tolist()
    n, mean = len(y), math.fsum(y) / len(y)
    total = math.fsum((b - mean) ** 2 for b in y)
    error = math.fsum((b - a) ** 2 for a, b in zip(x, y, strict=True))
    assert close(agreement.mean_absolute_error(p.x, p.y), sum(abs(b - a) for a, b in zip(x, y, strict=True)) / n)
    if np.ptp(p.y) > 0:
        assert close(agreement.r2_identity(p.x, p.y), 1 - error / total)
    if np.ptp(p.y) > 0 and np.ptp(p.x) > 0:
        assert close(agreement.r2_linear(p.x, p.y), stats.linregress(x, y).rvalue ** 2)
        assert close(agreement.rank_correlation(p.x, p.y), stats.spearmanr(x, y).statistic)


def test_what_is_undefined_is_nan():
    one, two = np.full(3, 0.2), np.array([0.1, 0.4, 0.3])
    assert np.mean(one) != 0.2  # the deviations of equal values are not all 0
    assert math.isnan(agreement.r2_identity(two, one)) and math.isnan(agreement.r2_linear(one, two))
    assert math.isnan(agreement.rank_correlation(one, two))
    same_x = Points(one, two, np.arange(3))
    assert math.isnan(agreement.r2_left_out(same_x))
    nothing = np.array([])
    assert all(math.isnan(statistic(nothing, nothing)) for statistic in agreement.STATISTICS.values())


def test_points_drop_what_is_unknown_and_keep_their_run():
    p = agreement.points(
        [np.array([0.1, np.nan, 0.3]), np.array([np.nan]), np.array([0.5, 0.6])],
        [np.array([0.2, 0.2, 0.4]), np.array([0.2]), np.array([0.7, np.nan])],
    )
    assert (p.x.tolist(), p.y.tolist(), p.run.tolist()) == ([0.1, 0.3, 0.5], [0.2, 0.4, 0.7], [0, 0, 2])
    last = agreement.last_of_runs(p)
    assert (last.x.tolist(), last.run.tolist()) == ([0.3, 0.5], [0, 2])
    assert len(agreement.last_of_runs(p.only(np.zeros(3, bool))).x) == 0


@given(point_sets(), st.lists(st.integers(0, 1), min_size=4, max_size=4))
def test_centering_within_groups_is_the_loop(p, groups):
    rows = []
    for n in range(len(p.x)):
        same = [m for m in range(len(p.x)) if groups[p.run[m]] == groups[p.run[n]]]
        if len({int(p.run[m]) for m in same}) > 1:
            rows.append((p.x[n] - sum(p.x[same]) / len(same), p.y[n] - sum(p.y[same]) / len(same), p.run[n]))
    got = agreement.centered_within(p, np.array(groups))
    np.testing.assert_allclose(np.array([got.x, got.y, got.run]).T, np.array(rows).reshape(-1, 3), atol=1e-12)


@given(point_sets(least=3))
def test_leaving_out_runs_is_the_loop(p):
    if not spread_enough(p.x, p.y):
        return
    runs = sorted(set(p.run.tolist()))
    predicted, without = [], []
    for run in runs:
        out = p.run == run
        without.append(agreement.r2_identity(p.x[~out], p.y[~out]) if (~out).any() else math.nan)
        if (~out).any() and np.std(p.x[~out]) > 1e-3:
            line = np.polyfit(p.x[~out], p.y[~out], 1)
            predicted.extend(np.polyval(line, p.x[out]))
    if len(runs) < 3:
        assert math.isnan(agreement.r2_left_out(p))
        assert np.isnan(agreement.range_without_a_run(p, "r2_identity")).all()
        return
    if len(predicted) == len(p.x):
        assert close(agreement.r2_left_out(p), agreement.r2_identity(np.array(predicted), p.y))
    low, high = agreement.range_without_a_run(p, "r2_identity")
    assert close(low, np.min(without)) and close(high, np.max(without))


@given(point_sets(), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_weight_is_a_point_that_often(p, times):
    weights_N = np.array(times)[p.run]
    x, y = np.repeat(p.x, weights_N), np.repeat(p.y, weights_N)
    if not len(x) or not spread_enough(x, y):
        return
    for name, statistic in agreement.STATISTICS.items():
        both = np.stack([weights_N, np.ones(len(p.x), int)]).astype(float)
        of_them, of_all = bootstrap.weighted(name, p.x, p.y, both)
        assert close(of_them, statistic(x, y)), name
        assert not spread_enough(p.x, p.y) or close(of_all, statistic(p.x, p.y)), name


def test_the_draws_are_those_of_a_plain_loop(monkeypatch):
    rng = np.random.default_rng(0)
    p = Points(rng.uniform(size=30), rng.uniform(size=30), np.sort(rng.integers(7, size=30)))
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 1000)  # several times over
    got, draws = bootstrap.interval(p, list(agreement.STATISTICS), draws=100, seed=3), np.random.default_rng(3)
    runs = [np.flatnonzero(p.run == run) for run in np.unique(p.run)]
    drawn = [np.concatenate([runs[i] for i in draws.integers(len(runs), size=len(runs))]) for _ in range(100)]
    for name, statistic in agreement.STATISTICS.items():
        values = [statistic(p.x[which], p.y[which]) for which in drawn]
        np.testing.assert_allclose(got[name], np.percentile(values, [2.5, 97.5]), rtol=1e-9)


def test_the_bootstrap_resamples_whole_runs():
    """With two runs there are four draws, equally likely, so the interval is known; rows of one run stay together."""
    p = Points(np.array([0.0, 0.0, 0.5]), np.array([0.1, 0.1, 0.7]), np.array([0, 0, 1]))
    interval = bootstrap.interval(p, ["mae"], draws=400, seed=0)["mae"]
    assert interval == pytest.approx([0.1, 0.2])  # run 0 twice, run 1 twice; a mixture is 0.4 / 3
    middle = bootstrap.interval(p, ["mae"], draws=400, seed=0, level=0.4)["mae"]
    assert middle == pytest.approx([0.4 / 3] * 2)
    again = bootstrap.interval(p, ["mae"], draws=400, seed=0)["mae"]
    assert again == interval
    alone = bootstrap.interval(p.only(p.run == 0), ["mae"], draws=10, seed=0)["mae"]
    assert np.isnan(alone).all()


def test_the_bootstrap_interval_agrees_with_a_normal_approximation():
    """The mean absolute error of runs with one point is a mean, whose interval is known."""
    rng = np.random.default_rng(0)
    error = rng.exponential(1.0, 400)
    p = Points(np.zeros(400), error, np.arange(400))
    low, high = bootstrap.interval(p, ["mae"], draws=2000, seed=1)["mae"]
    expected = 1.96 * error.std() / 20
    assert (error.mean() - low, high - error.mean()) == (pytest.approx(expected, rel=0.1),) * 2
