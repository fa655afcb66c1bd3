"""How good forecasts of emergence are where the truth is known: errors, coverage of intervals, calibration, refusals.

    python -m benchmarks.emergence [--replicates=60] [--only="clean;calibration"]

Rows are drawn from a law like the one of MMLU in the paper: nine models with losses from 2.75 to 1.89, seven amounts
from 1,500 to 100,000 examples, two subsets each, few-shot rows, and an elbow at 1.814 nats, below every model. Each
case changes one thing. The table goes beside the other results. Half an hour on one core.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from premem_jax.analysis import emergence_intervals as intervals
from premem_jax.analysis.emergence_elbow import elbow
from premem_jax.analysis.emergence_forecast import forecast
from premem_jax.analysis.emergence_law import Law, fit, planted
from premem_jax.analysis.emergence_table import Rows

LOSSES = np.array([2.75, 2.6, 2.48, 2.31, 2.2, 2.11, 2.03, 1.96, 1.89])
AMOUNTS = np.geomspace(1500, 100_000, 7).round()
LAW = Law("log_power_law", 5, AMOUNTS[-1], 1.814, 2.25, 2.0, slope=0.6, floor=0.25, fewshot_floor=0.25)
NOISE = 0.006
STEPS = 1000  # of a chain
DRAWS, FEWER = 40, 24  # bootstrap draws, and replicates of the cases that have them
RESULT = Path(__file__).parent / "results" / "emergence.md"


def rounded(seed: int, scale: float = 0.03) -> Rows:
    """Rows whose true curve is a softplus of this width, not a ReLU."""
    rows = planted(LAW, LOSSES, AMOUNTS, seed=seed)
    amount = np.where(rows.amount == 0, LAW.shots, rows.amount)
    smooth = LAW.slope * scale * np.logaddexp(0, (LAW.elbow_at(amount) - rows.loss) / scale)
    noise = np.random.default_rng(seed).normal(0, NOISE, len(smooth))
    return rows._replace(accuracy=LAW.floor + smooth + noise)


def rows_of(seed: int, *, losses=LOSSES, amounts=AMOUNTS, noise=NOISE, shift=0.0, subsets=2, fewshot=True) -> Rows:
    rows = planted(LAW, losses, amounts, noise=noise, shift=shift, subsets=subsets, seed=seed)
    return rows if fewshot else rows.finetuned


# Name to what draws the rows, and the form that is fitted.
CASES = {
    "clean": (rows_of, "log_power_law"),
    "without few-shot rows": (partial(rows_of, fewshot=False), "log_power_law"),
    "fitted with the power law": (rows_of, "power_law"),
    "rounded elbow (softplus, 0.03 nats)": (rounded, "log_power_law"),
    "noise 0.015": (partial(rows_of, noise=0.015), "log_power_law"),
    "without the strongest model": (partial(rows_of, losses=LOSSES[:-1]), "log_power_law"),
    "without the 2 strongest": (partial(rows_of, losses=LOSSES[:-2]), "log_power_law"),
    "without the 3 strongest": (partial(rows_of, losses=LOSSES[:-3]), "log_power_law"),
    "without the 2 smallest amounts": (partial(rows_of, amounts=AMOUNTS[2:]), "log_power_law"),
    "without the 3 largest amounts": (partial(rows_of, amounts=AMOUNTS[:-3]), "log_power_law"),
    "subsets shifted, sd 0.02 nats": (partial(rows_of, shift=0.02), "log_power_law"),
    "subsets shifted, sd 0.02, 4 subsets": (partial(rows_of, shift=0.02, subsets=4), "log_power_law"),
}
BOOTSTRAPPED = {
    "clean, bootstrap": rows_of,
    "subsets shifted, sd 0.02, bootstrap": partial(rows_of, shift=0.02),
}


def case(draw, form: str, replicates: int) -> list[str]:
    """A row of the table by the posterior."""
    errors, intervals_90 = [], []
    for seed in range(replicates):
        rows = draw(seed)
        best = fit(rows, LAW.shots, form)
        errors.append(best.law.elbow - LAW.elbow)
        chain = intervals.posterior(rows, best.law, seed, steps=STEPS)
        intervals_90.append(np.percentile(chain.elbow, [5, 95]))
    return cells(errors, intervals_90)


def bootstrapped(draw, replicates: int) -> list[str]:
    """The same by the bootstrap over subsets."""
    errors, intervals_90 = [], []
    for seed in range(replicates):
        rows = draw(seed)
        best = fit(rows, LAW.shots)
        errors.append(best.law.elbow - LAW.elbow)
        laws = intervals.bootstrap(rows, best, DRAWS, seed)
        intervals_90.append(np.percentile([law.elbow for law in laws], [5, 95]))
    return cells(errors, intervals_90)


def cells(errors: list[float], intervals_90: list[np.ndarray]) -> list[str]:
    size, ends = np.abs(errors), np.array(intervals_90)
    covers = np.mean((ends[:, 0] <= LAW.elbow) & (LAW.elbow <= ends[:, 1]))
    return [
        str(len(errors)),
        f"{np.median(size):.3f}",
        f"{np.quantile(size, 0.9):.3f}",
        f"{np.median(errors):+.3f}",
        f"{np.mean(size < 0.1):.2f}",
        f"{covers:.2f}",
        f"{np.median(np.ptp(ends, axis=1)):.3f}",
    ]


def calibration(replicates: int) -> str:
    """Simulation-based calibration: laws from the prior, and the rank of the true elbow among posterior draws."""
    low = np.array([1.6, 2.05, 0.5, 0.3, 0.2, np.log(0.004), -0.02])
    box = intervals.Box(low, np.array([2.0, 2.5, 4.0, 1.0, 0.3, np.log(0.012), 0.02]))
    ranks = []
    for seed in range(replicates):
        theta = np.random.default_rng([seed, 1]).uniform(box.low, box.high)
        law = Law(LAW.form, LAW.shots, LAW.largest, *theta[:5], fewshot_floor=theta[4] + theta[6])
        rows = planted(law, LOSSES, AMOUNTS, noise=np.exp(theta[5]), seed=seed)
        start = replace(law, noise=float(np.exp(theta[5])))
        chain = intervals.posterior(rows, start, seed, box=box, steps=STEPS)
        ranks.append(np.mean(chain.elbow < law.elbow))
    counts, _ = np.histogram(ranks, bins=5, range=(0, 1))
    p = stats.chisquare(counts).pvalue
    return f"Ranks of the true elbow among its posterior's draws, {replicates} laws, in fifths: {counts}, p = {p:.2f}."


def refusals(replicates: int) -> str:
    """How often a forecast is refused: of rows at chance, of an elbow that does not move, and of good rows."""
    same = replace(LAW, elbow=2.25, elbow_largest=2.25)
    kinds = {
        "all at chance": lambda seed: planted(replace(LAW, slope=0.0), LOSSES, AMOUNTS, noise=NOISE, seed=seed),
        "one elbow for all amounts": lambda seed: planted(same, LOSSES, AMOUNTS, noise=NOISE, seed=seed),
        "good": rows_of,
    }
    refused = {
        name: np.mean([forecast(draw(s), 5, LAW.form, 0, s)["refused"] is not None for s in range(replicates)])
        for name, draw in kinds.items()
    }
    return f"Refused, of {replicates} tables each: " + ", ".join(f"{name} {x:.2f}" for name, x in refused.items()) + "."


def truths(replicates: int) -> str:
    """Errors of the elbow fitted to a single few-shot curve: a ReLU, and a softplus."""
    loss, errors = np.linspace(2.3, 1.4, 12), {"ReLU": [], "softplus of 0.03 nats": [], "softplus of 0.1 nats": []}
    for seed in range(replicates):
        noise = np.random.default_rng(seed).normal(0, NOISE, len(loss))
        for (_, found), scale in zip(errors.items(), (1e-6, 0.03, 0.1), strict=True):
            curve = 0.25 + 0.6 * scale * np.logaddexp(0, (1.814 - loss) / scale)
            found.append(elbow(loss, curve + noise).elbow - 1.814)
    said = (f"{name} {np.median(x):+.3f} (sd {np.std(x):.3f})" for name, x in errors.items())
    return f"Error of the elbow of one curve of 12 models, median of {replicates}: " + ", ".join(said) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=60)
    parser.add_argument("--only", default="", help="names of cases, by semicolons; then no file is written")
    given = parser.parse_args()
    n, only = given.replicates, [name for name in given.only.split(";") if name]
    lines = [
        "| case | tables | median error | 90th percentile | bias | within 0.1 | 90 % interval covers | median width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    jobs = {name: partial(case, *how, n) for name, how in CASES.items()}
    jobs |= {name: partial(bootstrapped, draw, min(n, FEWER)) for name, draw in BOOTSTRAPPED.items()}
    for name, job in jobs.items():
        if not only or name in only:
            lines.append(f"| {' | '.join([name, *job()])} |")
            print(lines[-1], flush=True)
    for job in (calibration, refusals, truths):
        if not only or job.__name__ in only:
            lines += ["", job(n)]
            print(lines[-1], flush=True)
    if not only:
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
