"""The emergence law: algebra, fits of rows of a known law, intervals, refusals, baselines, and the printed tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.analysis import emergence_baselines as baselines
from premem_jax.analysis import emergence_intervals as intervals
from premem_jax.analysis.emergence_elbow import elbow
from premem_jax.analysis.emergence_forecast import forecast, held_out, verdict
from premem_jax.analysis.emergence_law import FORMS, Law, Problem, fit, planted, progress
from premem_jax.analysis.emergence_table import make, once
from premem_jax.errors import UserError
from tests.analysis.emergence_printed import ablations, elbows

LOSSES = np.array([2.75, 2.6, 2.48, 2.31, 2.2, 2.11, 2.03, 1.96, 1.89])
AMOUNTS = np.geomspace(1500, 100_000, 7).round()
LAW = Law("log_power_law", 5, AMOUNTS[-1], 1.814, 2.25, 2.0, slope=0.6, floor=0.25, fewshot_floor=0.25)

laws = st.builds(
    Law,
    st.sampled_from(FORMS),
    st.floats(2, 20),
    st.floats(100, 1e6),
    st.floats(1, 2),
    st.floats(2, 3),
    st.floats(0.2, 4),
    st.floats(0.1, 2),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
)

# ---- Algebra ---------------------------------------------------------------------------------------------------------


@given(laws)
def test_k_and_c_lead_back_to_the_law(law):
    k, c = law.k_and_c()
    again = Law.from_k_and_c(
        law.form,
        k,
        law.alpha,
        c,
        law.shots,
        law.largest,
        slope=law.slope,
        floor=law.floor,
        fewshot_floor=law.fewshot_floor,
    )
    amounts = np.geomspace(law.shots, law.largest, 9)
    raised = np.log(amounts) if law.form == "log_power_law" else amounts
    np.testing.assert_allclose(law.elbow_at(amounts), k * raised**law.alpha + c, rtol=1e-9)
    np.testing.assert_allclose(again.elbow_at(amounts), law.elbow_at(amounts), rtol=1e-9)
    assert law.elbow_at(law.shots) == pytest.approx(law.elbow) and law.elbow_at(law.largest) == law.elbow_largest


@given(laws, st.floats(0.05, 1))
def test_accuracy_is_the_floor_above_the_elbow_and_a_line_below(law, height):
    D = np.array([law.largest, (law.shots * law.largest) ** 0.5])
    E = law.elbow_at(D)
    assert np.all(law.accuracy(E + height, D) == law.floor) and law.accuracy(E[0] + 9, 0) == law.fewshot_floor
    np.testing.assert_allclose(law.accuracy(E - height, D), law.floor + law.slope * height)
    np.testing.assert_allclose(law.accuracy(law.elbow - height, 0), law.fewshot_floor + law.slope * height)


def test_the_unit_of_data_is_an_example():
    """Rescaling D and shots together changes nothing in the power law, and something in the log power law."""
    changed = {form: abs(progress(form, 300, 5, 1000, 1.5) - progress(form, 3, 0.05, 10, 1.5)) for form in FORMS[1:]}
    assert changed["power_law"] < 1e-12
    assert abs(progress("log_power_law", 300, 5, 1000, 1.5) - progress("log_power_law", 3e4, 500, 1e5, 1.5)) > 0.01


def test_least_squares_of_slope_and_floors_is_that_of_a_general_solver():
    """Variable projection against `lstsq` on the whole design, with unequal test sizes."""
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.02, seed=3)
    rows = rows._replace(items=np.random.default_rng(0).integers(10, 1000, len(rows.loss)).astype(float))
    problem, theta = Problem(rows, 5, "log_power_law"), np.array([[1.8, 2.3, 1.5], [1.9, 2.2, 0.7]])
    sse, linear = problem.solve(theta)
    root = np.sqrt(rows.items / rows.items.mean())
    for p in range(2):
        law = Law("log_power_law", 5, AMOUNTS[-1], *theta[p])
        E = law.elbow_at(np.where(rows.amount == 0, 5, rows.amount))
        X = np.stack([np.maximum(E - rows.loss, 0), np.ones(len(E)), rows.amount == 0], axis=1)
        want, [left], *_ = np.linalg.lstsq(X * root[:, None], rows.accuracy * root, rcond=None)
        np.testing.assert_allclose(linear[p], want, rtol=1e-8)
        assert sse[p] == pytest.approx(left)


# ---- Fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.5, 1, 2, 4])
def test_a_law_without_noise_is_found(form, alpha):
    """The models reach past the last elbow: else a power law of high alpha shows that of one amount alone."""
    law = Law(form, 5, AMOUNTS[-1], 1.814, 2.25, alpha, slope=0.6, floor=0.25, fewshot_floor=0.21)
    found = fit(planted(law, [*LOSSES, 1.81, 1.74], AMOUNTS, subsets=1), 5, form)
    assert abs(found.law.elbow - 1.814) < 1e-3 and found.sse < 1e-8
    assert found.law.slope == pytest.approx(0.6, abs=1e-3) and found.law.fewshot_floor == pytest.approx(0.21, abs=1e-3)


def test_a_law_under_noise_is_found():
    """A dozen draws here; benchmarks/emergence.py has sixty of each kind."""
    errors = np.abs([fit(planted(LAW, LOSSES, AMOUNTS, noise=0.006, seed=s), 5).law.elbow - 1.814 for s in range(12)])
    assert np.median(errors) < 0.045 and errors.max() < 0.1


def test_rows_of_larger_tests_weigh_more():
    """Half the rows are far off and of tiny tests: unweighted they would ruin the fit."""
    good = planted(LAW, LOSSES, AMOUNTS, noise=0.001, seed=1)
    bad = planted(LAW, LOSSES, AMOUNTS, noise=0.1, seed=2)
    items = np.repeat([10_000, 1], [len(good.loss), len(bad.loss)])
    both = make(*(np.concatenate(pair) for pair in zip(good[:3], bad[:3], strict=True)), items=items)
    plain = both._replace(items=np.ones(len(items)))
    assert abs(fit(both, 5).law.elbow - 1.814) < 0.01 < abs(fit(plain, 5).law.elbow - 1.814)


def test_rows_count_once():
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.01)
    twin = rows.where(rows.amount == AMOUNTS[-1])
    twin = twin.where(twin.subset == "0")._replace(subset=np.full(len(LOSSES), "again"))
    more = type(rows)(*(np.concatenate(three) for three in zip(rows, twin, rows, strict=True)))
    kept, notes = once(more)
    assert len(kept.loss) == len(rows.loss) and fit(kept, 5).law == fit(rows, 5).law
    assert len(notes) == 2 and "again" in notes[1]
    with pytest.raises(UserError, match="another accuracy"):
        once(more._replace(accuracy=np.concatenate([more.accuracy[:-1], [0.9]])))


# ---- Intervals -------------------------------------------------------------------------------------------------------


def test_the_density_is_that_of_the_rows_one_by_one():
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.02, seed=3)
    problem = Problem(rows, 5, "log_power_law")
    box = intervals.prior(problem)
    theta = np.array([[1.8, 2.2, 1.5, 0.6, 0.25, np.log(0.02), 0.01], [1.8, 1.7, 1.5, 0.6, 0.25, -4.0, 0.0]])
    got = intervals.log_density(problem, box, theta)
    law = Law("log_power_law", 5, AMOUNTS[-1], 1.8, 2.2, 1.5, 0.6, 0.25, 0.26)
    error = rows.accuracy - law.accuracy(rows.loss, rows.amount)
    assert got[0] == pytest.approx(np.sum(-0.5 * (error / 0.02) ** 2 - np.log(0.02)))
    assert got[1] == -np.inf  # finetuning would move the elbow the wrong way


def test_both_intervals_hold_the_truth_and_chains_meet():
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.006, seed=1)
    best = fit(rows, 5)
    posterior = intervals.posterior(rows, best.law, 0)
    first, again = (intervals.posterior(rows, best.law, 0, steps=100) for _ in range(2))
    assert posterior.converged and np.array_equal(first.draws, again.draws)
    low, high = np.percentile(posterior.elbow, [5, 95])
    assert low < 1.814 < high and 0.05 < high - low < 0.25
    boot = np.array([law.elbow for law in intervals.bootstrap(rows, best, 12, 0)])
    assert abs(np.median(boot) - best.law.elbow) < 0.05 and 0.01 < np.ptp(boot) < 0.4


def test_r_hat_tells_chains_that_differ():
    random = np.random.default_rng(0)
    same = random.normal(size=(2000, 10))
    assert intervals.split_r_hat(same) == pytest.approx(1, abs=0.01)
    assert intervals.split_r_hat(same + np.arange(10)) > 1.5


# ---- Refusals and negative controls ----------------------------------------------------------------------------------


def asked(rows, draws=0):
    return forecast(rows, 5, "log_power_law", draws, seed=0)


@pytest.fixture(scope="module")
def good():
    """Rows with a law in them, and what is predicted from them."""
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.006)
    return rows, asked(rows)


def test_what_says_nothing_is_refused_with_its_reason(good):
    rows, found = good
    assert found["refused"] is None and abs(found["elbow"] - 1.814) < 0.1
    noise = np.random.default_rng(0).normal(0, 0.01, len(rows.loss))
    cases = {
        "nothing": (rows._replace(accuracy=0.25 + noise), "above chance"),
        "one amount": (rows.where((rows.amount == AMOUNTS[-1]) | (rows.amount == 0)), "1 amount of"),
        "two models": (rows.where(rows.loss < 2), "models of 2 different losses"),
        "few-shot alone": (rows.fewshot, "0 amounts of"),
        "one elbow": (
            planted(Law("log_power_law", 5, AMOUNTS[-1], 2.25, 2.25, 1.0, 0.6, 0.25), LOSSES, AMOUNTS, noise=0.006),
            "does not move the elbow",
        ),
    }
    for name, (case, words) in cases.items():
        found = asked(case)
        assert words in found["refused"] and found["elbow"] is None, (name, found["refused"])


def test_an_elbow_beyond_all_models_is_no_number():
    """Only the largest amounts leave the floor, just before the models end."""
    rows = planted(LAW, LOSSES[LOSSES > 2.15], AMOUNTS, noise=0.006)
    found = asked(rows)
    assert found["elbow"] is None and "not in reach" in found["refused"]


def test_shuffled_amounts_are_no_law(good):
    """The amounts of whole groups are exchanged in three ways: the law fits worse, and mostly gives no forecast."""
    rows, found = good
    groups = list(dict.fromkeys(zip(rows.finetuned.amount, rows.finetuned.subset, strict=True)))
    refused = 0
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation([amount for amount, _ in groups])
        names = dict(zip(groups, shuffled, strict=True))
        keys = zip(rows.amount, rows.subset, strict=True)
        mixed = asked(rows._replace(amount=np.array([names.get(key, 0) for key in keys])), draws=16)
        assert mixed["law"]["noise"] > 2 * found["law"]["noise"]
        refused += mixed["refused"] is not None
    assert refused >= 2


def test_the_right_form_fits_what_was_left_out_better():
    """By held-out likelihood, on rows with little noise and models past most elbows."""
    for form in FORMS:
        law = Law(form, 5, AMOUNTS[-1], 1.9, 2.4, 0.6 if form == "power_law" else 3.0, 0.6, 0.25, 0.25)
        rows = planted(law, [*LOSSES, 1.8], AMOUNTS, noise=0.002)
        scores = held_out(rows, 5)
        other = next(name for name in FORMS if name != form)
        assert scores[form]["smallest_amount"] > scores[other]["smallest_amount"]


# ---- Elbows of one curve, and baselines ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.floats(1.97, 2.59), st.floats(0.2, 2), st.integers(0, 1000))
def test_the_elbow_of_a_curve_is_found(truth, slope, seed):
    curve = 0.25 + slope * np.maximum(truth - LOSSES, 0)
    found = elbow(LOSSES, curve)
    assert found.elbow == pytest.approx(truth, abs=1e-3) and found.slope == pytest.approx(slope, rel=0.02)
    noisy = elbow(LOSSES, curve + np.random.default_rng(seed).normal(0, 0.004, 9))
    assert abs(noisy.elbow - truth) < 0.15 + 0.02 / slope


def test_a_line_and_a_constant_do_not_bend():
    noise = np.random.default_rng(0).normal(0, 0.004, 9)
    assert not elbow(LOSSES, 3 - LOSSES + noise).bends
    flat = elbow(LOSSES, 0.25 + noise)
    assert flat is None or not flat.bends
    assert elbow(LOSSES, 0.25 + np.maximum(2.3 - LOSSES, 0) + noise).bends
    assert elbow(LOSSES[:3], LOSSES[:3]) is None


def test_baselines_find_what_they_assume():
    """Each on rows where its own assumption is true: there it has the few-shot accuracy of stronger models."""
    further = np.array([1.8, 1.6, 1.4])
    few = dict(loss=LOSSES, amount=np.zeros(9))
    rate = np.exp(1.2 - 2.5 * LOSSES)
    by_rate = baselines.baselines(make(**few, accuracy=rate), 5)["pass_rate"]
    np.testing.assert_allclose(by_rate.curve(further), np.exp(np.minimum(1.2 - 2.5 * further, 0)), rtol=1e-6)
    line = 2 - 2.2 * LOSSES
    to_accuracy = lambda logprob: 0.1 + 0.9 / (1 + np.exp(-(logprob + 2.5) / 0.4))
    rows = make(**few, accuracy=to_accuracy(line), gold_logprob=line)
    found = baselines.baselines(rows, 5)
    want = to_accuracy(np.minimum(2 - 2.2 * further, 0))
    np.testing.assert_allclose(found["gold_logprob_linear"].curve(further), want, atol=1e-4)
    sigmoid = lambda loss: 0.2 + 0.8 / (1 + np.exp((loss - 2.2) / 0.1))
    found = baselines.baselines(make(**few, accuracy=sigmoid(LOSSES)), 5)
    np.testing.assert_allclose(found["accuracy_sigmoid"].curve(further), sigmoid(further), atol=1e-4)
    assert np.all(found["last_value"].curve(further) == sigmoid(LOSSES[-1]))
    assert found["gold_logprob_linear"].curve is None and "gold_logprob" in found["gold_logprob_linear"].why_not
    line = Law("log_power_law", 5, AMOUNTS[-1], 1.9, 2.4, 1.0, 0.6, 0.25, 0.25)
    found = baselines.baselines(planted(line, [*LOSSES, 1.8], AMOUNTS), 5)
    assert found["linear_in_log_amount"].elbow == pytest.approx(1.9, abs=1e-2)
    assert found["smallest_amount"].elbow == pytest.approx(float(line.elbow_at(1500)), abs=1e-3)
    assert found["last_loss"].elbow == 1.8


def test_a_verdict_scores_every_method_on_the_stronger_models():
    further = np.array([1.8, 1.7, 1.6, 1.5, 1.4])
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.004, seed=2)
    rows = rows._replace(flops=1e20 * np.exp(3 * (2.75 - rows.loss)))
    truth = make(further, np.zeros(5), LAW.accuracy(further, 0), flops=1e20 * np.exp(3 * (2.75 - further)))
    found = asked(rows)
    said = verdict(found, rows, truth)
    assert said["elbow"] == pytest.approx(1.814, abs=0.02) and said["bends"] and said["covered"]
    scores = said["scores"]
    assert abs(scores["emergence_law"]["error"]) < 0.1 and scores["emergence_law"]["accuracy_error"] < 0.06
    assert scores["last_value"]["error"] is None and scores["last_value"]["accuracy_error"] > 0.1
    assert scores["last_loss"]["error"] == pytest.approx(1.89 - said["elbow"])
    assert said["flops_ahead"] == pytest.approx(np.exp(3 * (1.89 - 1.8)))
    assert scores["two_step"]["accuracy_error"] > 0
    with pytest.raises(UserError, match="no few-shot rows"):
        verdict(found, rows, rows.finetuned)


# ---- The printed tables ----------------------------------------------------------------------------------------------


def test_the_printed_tables_agree_with_each_other():
    """|maximum likelihood - truth| of the table of elbows is the first row of the ablations, to the last digit."""
    full = ablations()["full data"]
    for task, error in full.items():
        row = elbows()[task, "MCMC"]
        assert abs(row["likelihood"] - row["truth"]) == pytest.approx(error, abs=1e-3), task
    for row in elbows().values():
        numbers = [row[key] for key in row if key.endswith("%")]
        assert numbers == sorted(numbers) and len(numbers) == 7


def test_the_printed_intervals_cover_as_often_as_is_said():
    """90 % intervals: 4 of 6 by posterior, 3 of 6 by bootstrap."""
    covers = {"MCMC": [], "boot": []}
    for (_, method), row in elbows().items():
        if "truth" in row:
            covers[method].append(row["5%"] <= row["truth"] <= row["95%"])
    assert [(sum(got), len(got)) for got in covers.values()] == [(4, 6), (3, 6)]


def test_the_printed_failures_are_where_the_strongest_models_are_left_out():
    share = {name: np.mean([error > 0.1 for error in row.values()]) for name, row in ablations().items()}
    assert share["full data"] == 0 and share["-3 last"] == 1 > share["-1 last checkpoint"]
