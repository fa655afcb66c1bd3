"""Rules for the memorization threshold, each scored on a domain that was not looked at when it was chosen.

    python -m benchmarks.thresholds GSM8K=DIR MATH=DIR arithmetic=DIR,DIR [--draws=200]

A domain is one or several sets of runs, as `configs/analyze.py` reads them. A rule has a constant: for each domain it
is the one with which the rule's lowest R² (against y = x) over the other domains is highest, where the R² of a domain
is that of its worst set. The last line chooses the rule in the same way, too. Prints this table in Markdown, one of all
constants, one of what runs without held-out examples lose, and one of small held-out sets.
"""

import argparse
import itertools

import numpy as np

from premem_jax.analysis import agreement, calibration, study
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import usable

QUANTILES = (0.0025, 0.005, 0.01, 0.02, 0.05)
RULES = {name: (rule, QUANTILES) for name, rule in calibration.RULES.items()} | {
    "heldout_fraction": (calibration.heldout_fraction, (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
    "first_epoch_fraction": (calibration.first_epoch_fraction, (0.18, 0.25, 0.36, 0.5, 0.7)),
}
SIZES = (100, 250, 500, 1000)
Domains = dict[str, list[list[Run]]]
Scores = dict[tuple[str, float], dict[str, float]]


def r2(runs: list[Run], thresholds: calibration.Thresholds) -> float:
    p = calibration.points(runs, thresholds)
    return agreement.r2_identity(p.x, p.y)


def scores(domains: Domains) -> Scores:
    """(rule, constant) -> domain -> R² of the domain's worst set."""
    return {
        (name, constant): {d: min(r2(runs, rule(runs, constant)) for runs in sets) for d, sets in domains.items()}
        for name, (rule, constants) in RULES.items()
        for constant in constants
    }


def best(table: Scores, domains: list[str], names=tuple(RULES)) -> tuple[str, float]:
    """The rule of `names` and the constant with the highest lowest R² over `domains`."""
    return max((key for key in table if key[0] in names), key=lambda key: min(table[key][d] for d in domains))


def left_out(table: Scores, domains: list[str]) -> list[list[str]]:
    """For each rule, and for the best rule: R² on each domain with what was chosen on the others."""
    rows = []
    for title, names in [*((name, [name]) for name in RULES), ("the best on the others", list(RULES))]:
        chosen = {out: best(table, [d for d in domains if d != out], names) for out in domains}
        values = {out: table[key][out] for out, key in chosen.items()}
        shown = [f"{values[d]:.3f} ({label(*chosen[d], len(names) > 1)})" for d in domains]
        rows.append([title, *shown, f"{min(values.values()):.3f}"])
    return rows


def label(name: str, constant: float, with_name: bool) -> str:
    number = f"{100 * constant:g} %" if RULES[name][1] is QUANTILES else f"{constant:g}"
    return f"{name}, {number}" if with_name else number


def without(sets: list[list[Run]]) -> tuple[float, float]:
    """Mean error of the runs with held-out examples at their own thresholds, and at those that the others give."""
    mine, others = [], []
    for runs in sets:
        some = [run for run in runs if usable(run.heldout_nll)]
        given = [calibration.reference_run([one for one in some if one is not run], 0.01)[0] for run in some]
        for found, thresholds in ((mine, calibration.heldout_quantile(some, 0.01)), (others, given)):
            p = calibration.points(some, thresholds)
            found.append(agreement.mean_absolute_error(p.x, p.y))
    return float(np.mean(mine)), float(np.mean(others))


def small_sets(domains: Domains, draws: int) -> list[list[str]]:
    """For each domain's first set, size and tail: thresholds relative to those of all examples, and R²."""
    rows = []
    for domain, (runs, *_) in domains.items():
        for tail in calibration.TAILS:
            everything = np.log(np.concatenate(_own(runs)))
            for examples in SIZES:
                drawn_DM, r2_D = calibration.redrawn(runs, 0.01, examples, draws, 0, tail)
                ratio = np.log(drawn_DM) - np.log(everything)
                low, middle, high = np.percentile(r2_D, [2.5, 50, 97.5])
                error = np.sqrt(np.mean(ratio**2))
                cells = (f"{np.mean(ratio):+.0%}", f"{error:.0%}", f"{middle:.3f} ({low:.2f} … {high:.2f})")
                rows.append([domain, tail, str(examples), *cells])
    return rows


def _own(runs: list[Run]) -> list[np.ndarray]:
    """For each run with held-out examples, the thresholds (perplexity) of the evaluations that have some."""
    rules = calibration.heldout_quantile(runs, 0.01)
    rows = [list(usable(run.heldout_nll)) for run in runs]
    return [np.asarray(p)[row] for p, row in zip(rules, rows, strict=True) if row]


def printed(columns: list[str], rows: list[list[str]]) -> None:
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", metavar="NAME=DIR[,DIR]")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    domains: Domains = {}
    for domain, _, folders in (text.partition("=") for text in options.domains):
        read = (sorted(read_runs(folder), key=lambda run: run.task) for folder in folders.split(","))
        domains[domain] = [list(g) for runs in read for _, g in itertools.groupby(runs, key=lambda run: run.task)]
    names, table = list(domains), scores(domains)
    tuned = [f"{min(calibration.Sensitivity(runs).tuned()[1] for runs in sets):.3f}" for sets in domains.values()]
    printed(["rule, its constant chosen on the other domains", *names, "lowest"], left_out(table, names))
    rows = [
        [study.RULE_TITLES.get(name, name), label(name, constant, False), *(f"{row[d]:.3f}" for d in names)]
        for (name, constant), row in table.items()
    ]
    printed(["rule", "constant", *names], [*rows, ["tuned on test accuracy, one for all", "", *tuned]])
    own, others = zip(*(without(sets) for sets in domains.values()), strict=True)
    rows = [["their own", *(f"{x:.4f}" for x in own)], ["those of the other runs", *(f"{x:.4f}" for x in others)]]
    printed(["mean error of runs with held-out examples, at thresholds that are", *names], rows)
    columns = ["domain", "tail", "held out", "bias of a threshold", "its error", "R², median (95 % of draws)"]
    printed(columns, small_sets(domains, options.draws))


if __name__ == "__main__":
    main()
