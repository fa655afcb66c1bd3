"""What a curation saves: known curves give known ratios, censoring is said, and intervals cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.analysis import curation, jobs, selection
from premem_jax.analysis.curation import examples_for, findings, iid_curve, line_up
from premem_jax.analysis.jobs import Job, job_of


def accuracies(curve, strategies, seeds=1, originals=100, sizes=(0, 100, 300, 700), noise=0.0):
    """Members whose accuracy is `curve(examples)`; a strategy's is that of `factor` times as many."""
    rng, out = np.random.default_rng(0), {}
    for seed in range(seeds):
        shift = rng.normal(0, noise)
        for added in sizes:
            out[Job("iid" if added else "base", added, seed).name] = curve(originals + added) + shift
        for (strategy, added), factor in strategies.items():
            job = Job(strategy, added, seed)
            out[job.name] = curve(factor * (originals + added)) + shift + rng.normal(0, noise / 10)
    return line_up(out)


def linear(n):
    return n / 1000


def test_on_a_straight_curve_the_ratio_is_the_factor():
    found = accuracies(linear, {("oracle", 100): 2.0, ("early_accuracy", 100): 1.5, ("high_nll", 100): 9.0})
    rows = {row["strategy"]: row for row in findings(found, 100, draws=10, seed=0)}
    assert rows["oracle"]["ratio"] == pytest.approx(2.0) and not rows["oracle"]["censored"]
    assert rows["early_accuracy"]["ratio"] == pytest.approx(1.5)
    assert rows["early_accuracy"]["share_of_oracle"] == pytest.approx(0.5)
    assert rows["early_accuracy"]["gain"] == pytest.approx(0.1) and rows["early_accuracy"]["ratio_interval"] is None
    assert rows["high_nll"]["censored"] and rows["high_nll"]["ratio"] == 4.0  # 800 were tried, of 200
    assert [row["strategy"] for row in findings(found, 100, draws=10, seed=0)][:4] == ["iid"] * 3 + ["oracle"]


def test_intervals_are_paired_over_seeds_and_exclude_one_where_the_gain_is_real():
    found = accuracies(linear, {("oracle", 100): 1.5, ("random", 100): 1.0}, seeds=8, noise=0.05)
    rows = {row["strategy"]: row for row in findings(found, 100, draws=400, seed=0)}
    low, high = rows["oracle"]["ratio_interval"]
    assert 1.3 < low < 1.5 < high < 1.7  # though accuracies differ between seeds by as much as the gain
    low, high = rows["random"]["ratio_interval"]
    assert low < 1 < high


def test_an_interval_that_leaves_the_curve_says_so_and_an_oracle_without_gain_has_no_share():
    found = accuracies(linear, {("oracle", 100): 1.0, ("random", 100): 3.99}, seeds=8, noise=0.2)
    rows = {row["strategy"]: row for row in findings(found, 100, draws=200, seed=0)}
    assert np.isinf(rows["random"]["ratio_interval"][1])
    assert rows["random"]["share_interval"] is None


def test_a_seed_that_lacks_a_member_is_left_out():
    found = line_up({"base-seed0": 0.1, "base-seed1": 0.2, "iid+5-seed1": 0.3, "iid+5-seed2": 0.3, "base-seed2": 0.0})
    assert found.seeds == [1, 2] and found.base.tolist() == [0.2, 0.0] and found.of["iid", 5].tolist() == [0.3, 0.3]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(-0.1, 1.1))
def test_the_curve_rises_and_is_inverted(values, value):
    members = {Job("iid" if i else "base", 10 * i, 0).name: y for i, y in enumerate(values)}
    sizes, curve = iid_curve(line_up(members), 50, np.array([0]))
    assert np.all(np.diff(curve) >= 0) and np.mean(curve) == pytest.approx(np.mean(values), abs=1e-9)
    n = examples_for(sizes, curve, value)
    if value > curve[-1]:
        assert np.isinf(n)
    elif value > curve[0]:
        assert np.interp(n, sizes, curve) == pytest.approx(value, abs=1e-9)
    else:
        assert n == 50


@settings(deadline=None)
@given(st.sampled_from(jobs.STRATEGIES), st.integers(1, 10**6), st.integers(0, 99))
def test_a_job_is_read_from_its_name(strategy, added, seed):
    job = Job(strategy, added, seed)
    assert job_of(job.name) == job and job_of(Job("base", 0, seed).name) == Job("base", 0, seed)


@pytest.mark.parametrize("name", ["base+5-seed0", "iid-seed0", "iid+0-seed0", "iid+5", "iid+05-seed0", "x y+5-seed0"])
def test_other_names_are_no_jobs(name):
    assert job_of(name) is None


def test_the_light_names_are_those_of_the_functions():
    assert set(selection.STRATEGIES) == set(jobs.STRATEGIES)
    assert curation.ORACLE in selection.STRATEGIES
