"""The study of a set of runs of one task: predictors side by side, and the rules for the threshold.

All results are plain numbers in dicts and lists, as in `summary.json`, where NaN is None.
"""

import math
from collections.abc import Sequence

import numpy as np

from premem_jax.analysis import agreement, bootstrap, calibration, predictors, premem, threshold, thresholded_confidence
from premem_jax.analysis.agreement import Points
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import Threshold
from premem_jax.errors import UserError

QUANTILES = (0.005, 0.01, 0.02, 0.05)
HELDOUT_SIZES = (100, 250, 500, 1000)

RULE_TITLES = {
    "published": "the authors', tuned on test accuracy",
    "given": "given by hand",
    "heldout_quantile": "each evaluation its own quantile of held-out NLL",
    "lowest_quantile": "each run its lowest of these",
    "median_over_runs": "median over runs of the lowest",
    "reference_run": "quantile of held-out NLL where its mean is lowest, one for all",
    "first_epoch_fraction": f"{calibration.FIRST_EPOCH_FRACTION} x lowest first-epoch median train NLL",
    "heldout_fraction": "each evaluation a fraction of its median held-out NLL",
    "tuned": "tuned on test accuracy, all runs",
    "tuned_on_other_runs": "tuned on test accuracy, other runs",
}


def predictor_table(runs: Sequence[Run], chosen: Sequence[Threshold], draws: int, seed: int) -> dict[str, dict]:
    """Agreement of each predictor with test accuracy: over all evaluations, over the last ones, within equal size.

    Args:
      runs: runs of one task and model.
      chosen: their memorization thresholds.
      draws: number of bootstrap draws over runs.
      seed: seed of the draws.

    Returns:
      Predictor name to r2_identity, r2_linear, mae, rank_correlation (the first and third None for a predictor that is
      no accuracy), n_points, n_runs, threshold (perplexity, the median over runs; None where none is used), `interval`
      with a 95 % interval of each statistic over runs, r2_left_out, `without_a_run` [lowest, highest] R², and `final`
      and `within_size` with the statistics over those points. A predictor measured in no run is left out.
    """
    values = values_of(runs, chosen)
    names = [*predictors.PREDICTORS, *sorted({name for row in values for name in row} - predictors.PREDICTORS.keys())]
    sizes = np.array([len(run.train.example) for run in runs])
    table = {}
    for name in names:
        xs = [row.get(name, np.full(len(run.trace.steps), np.nan)) for row, run in zip(values, runs, strict=True)]
        p = agreement.points(xs, [run.test_accuracy for run in runs])
        if not len(p.x):
            continue
        kind = predictors.of(name)
        statistics = [s for s in agreement.STATISTICS if kind.is_accuracy or s not in agreement.IN_UNITS_OF_ACCURACY]
        final = agreement.last_of_runs(p)
        r2 = statistics[0]
        table[name] = {
            **_scores(p, statistics),
            "threshold": median_perplexity(chosen) if kind.uses_threshold else None,
            "interval": bootstrap.interval(p, statistics, draws, seed),
            "r2_left_out": agreement.r2_left_out(p),
            "without_a_run": agreement.range_without_a_run(p, r2),
            "final": {
                **_scores(final, statistics),
                "interval": bootstrap.interval(final, statistics, draws, seed),
            },
            "within_size": _scores(agreement.centered_within(p, sizes), statistics),
        }
    return table


def values_of(runs: Sequence[Run], chosen: Sequence[Threshold]) -> list[dict[str, np.ndarray]]:
    """Values (M,) of every predictor for each run: those of the run alone, and the one calibrated on the other runs."""
    predicted = thresholded_confidence.average_thresholded_confidence(runs)
    shared = [{"average_thresholded_confidence": values} if np.isfinite(values).any() else {} for values in predicted]
    return [
        row | predictors.evaluate(run, mine.perplexity) for run, row, mine in zip(runs, shared, chosen, strict=True)
    ]


def threshold_table(
    runs: Sequence[Run], chosen: Sequence[Threshold], sensitivity: calibration.Sensitivity
) -> list[dict]:
    """For each rule: its thresholds, and the agreement of pre-memorization accuracy with test accuracy.

    `r2_tuned` is the best R² of any single threshold on the points on which the rule is scored; `behind_tuned` is the
    difference to it. `looks_at_test` marks rules that use test accuracy.
    """
    rows = []

    def add(name: str, thresholds: calibration.Thresholds, quantile: float | None = None, looks: bool = False) -> None:
        p = calibration.points(runs, thresholds)
        if len(p.x):
            nll = [np.log(t) for t in thresholds if t is not None]
            rows.append(_rule_row(name, quantile, looks, p, np.concatenate([np.ravel(x) for x in nll]), sensitivity))

    published = {run.published for run in runs} - {None}
    if len(published) == 1:
        add("published", [*published] * len(runs), looks=True)  # its authors tuned it on these runs
    if chosen[0].rule == "given":
        add("given", [mine.perplexity for mine in chosen])
    if any(threshold.usable(run.heldout_nll) for run in runs):
        for name, rule in calibration.RULES.items():
            for quantile in QUANTILES:
                add(name, rule(runs, quantile), quantile)
    add("first_epoch_fraction", calibration.first_epoch_fraction(runs))
    nll, _ = sensitivity.tuned()
    if not math.isnan(nll):
        add("tuned", [math.exp(nll)] * len(runs), looks=True)
        p, nlls = sensitivity.tuned_on_other_runs()
        if len(p.x):
            known = np.array([x for x in nlls if not math.isnan(x)])
            rows.append(_rule_row("tuned_on_other_runs", None, True, p, known, sensitivity))
    return rows


def heldout_error(runs: Sequence[Run], quantile: float, draws: int, seed: int, tail: str = "quantile") -> list[dict]:
    """Bootstrap over held-out set sizes: variation of the default rule's thresholds, and of R² with them.

    The threshold is the median over evaluations, `relative_error` the root mean square over evaluations of the
    standard deviation of its logarithm; intervals hold 95 % of the draws. Empty if no run has held-out examples.
    """
    sizes = [len(nll_E) for run in runs for nll_E in threshold.usable(run.heldout_nll).values()]
    rows = []
    for examples in [*(n for n in HELDOUT_SIZES if n < min(sizes)), min(sizes)] if sizes else []:
        drawn_DM, r2 = calibration.redrawn(runs, quantile, examples, draws, seed, tail)
        drawn = np.median(drawn_DM, axis=1)
        rows.append(
            {
                "examples": examples,
                "nll": float(np.mean(drawn)),
                "relative_error": float(np.sqrt(np.mean(np.var(np.log(drawn_DM), axis=0)))),
                "nll_interval": np.percentile(drawn, [2.5, 97.5]).tolist(),
                "r2_identity_median": float(np.median(r2)),
                "r2_identity_interval": np.percentile(r2, [2.5, 97.5]).tolist(),
            }
        )
    return rows


def run_table(runs: Sequence[Run], chosen: Sequence[Threshold]) -> list[dict]:
    """For each run: its name and size, its threshold, and its curves of every predictor and of test accuracy."""
    return [
        {
            "run": run.name,
            "evaluations": len(run.trace.steps),
            "train_examples": len(run.train.example),
            "heldout_examples": 0 if run.heldout_nll is None else run.heldout_nll.shape[1],
            "threshold": mine.at_end,
            "thresholds": np.exp(mine.nll(len(run.trace.steps))).tolist(),
            **{f"threshold_{key}": value for key, value in mine.detail.items()},
            "step": run.trace.steps.tolist(),
            "epoch": run.trace.epochs.tolist(),
            "test_accuracy": run.test_accuracy.tolist(),
            **{name: values.tolist() for name, values in row.items()},
            "notes": list(run.notes),
        }
        for run, row, mine in zip(runs, values_of(runs, chosen), chosen, strict=True)
    ]


def note_table(runs: Sequence[Run]) -> list[dict]:
    """Each note once, with its runs."""
    about: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            about.setdefault(note, []).append(run.name)
    names = {note: "all runs" if len(of) == len(runs) > 1 else ", ".join(of) for note, of in about.items()}
    return [{"note": note, "runs": names[note]} for note in about]


def median_perplexity(chosen: Sequence[Threshold]) -> float:
    """The median over runs of the threshold at the last evaluation, to show as one number."""
    return float(np.median([mine.at_end for mine in chosen]))


def rule_for(runs: Sequence[Run], rule: str) -> str:
    """`rule`; the held-out quantile instead of `published` for runs without one published threshold."""
    published = {run.published for run in runs} - {None}
    return "heldout_quantile" if rule == "published" and len(published) != 1 else rule


def choose(runs: Sequence[Run], rule: str, quantile: float, perplexity: float) -> list[Threshold]:
    """The memorization threshold of each run.

    `published` is the threshold of the runs' authors; runs without one take the held-out quantile.

    Raises:
      UserError: an unknown rule, a rule that needs data these runs lack, or a threshold below one by which a run
        skipped samples.
    """
    thresholds = _choose(runs, rule_for(runs, rule), quantile, perplexity)
    for run, mine in zip(runs, thresholds, strict=True):
        train = run.train
        settled_ME = premem.settled(train.accuracy_or_skipped, train.nll, mine.perplexity)
        if np.any(train.skipped_ME & ~settled_ME):
            raise UserError(
                f"Run {run.name!r} did not sample examples that were memorized by a higher threshold than "
                f"perplexity {mine} ({mine.rule}), so the metric is not known at it. Choose the rule and the quantile, "
                "or the given threshold, that the run was made with."
            )
    return thresholds


def _choose(runs: Sequence[Run], rule: str, quantile: float, perplexity: float) -> list[Threshold]:
    if rule == "given":
        return [threshold.given(perplexity)] * len(runs)
    if rule == "published":
        [published] = {run.published for run in runs if run.published is not None}
        rule = "published by the authors, who tuned it on test accuracy"
        return [Threshold(published, rule, {}, looks_at_test=True)] * len(runs)
    if rule == "heldout_quantile":
        return threshold.of_runs([run.heldout_nll for run in runs], quantile)
    raise UserError(f"threshold.rule={rule!r}: choose published, heldout_quantile or given.")


def _scores(p: Points, statistics: list[str]) -> dict:
    undefined = dict.fromkeys(agreement.STATISTICS)
    scores = {name: agreement.STATISTICS[name](p.x, p.y) for name in statistics}
    return undefined | scores | {"n_points": len(p.x), "n_runs": len(np.unique(p.run))}


def _rule_row(
    name: str, quantile: float | None, looks: bool, p: Points, nll: np.ndarray, sensitivity: calibration.Sensitivity
) -> dict:
    _, best = sensitivity.tuned(runs=np.unique(p.run))
    scores = _scores(p, list(agreement.STATISTICS))
    return {
        "rule": name,
        "quantile": quantile,
        "looks_at_test": looks,
        "nll_lowest": float(np.min(nll)),
        "nll_highest": float(np.max(nll)),
        "threshold": float(np.exp(np.median(nll))),
        **scores,
        "r2_tuned": best,
        "behind_tuned": best - scores["r2_identity"],
    }
