"""Bias and coverage of the estimates of pre-memorization accuracy, and what fewer samples cost.

    python -m benchmarks.estimates GSM8K=DIR [MATH=DIR ...] [--replicates=1000] [--samples=5,2,1]

Truth is known where a run has many samples of every training example at every evaluation: their means are taken for
the true accuracies, and few samples of 500 of the examples are drawn from them, again and again. Prints in Markdown:
bias and coverage of 95 % in each such run, at its middle and its last evaluation; R² against y = x of all runs with
5, 2 and 1 of the samples (mean of three draws); and how many runs end within 5 and 10 points of the test accuracy,
which is what `premem_jax/analysis/record.py` keeps.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.thresholds import printed
from premem_jax.analysis import agreement, estimate, premem, study
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import SplitTrace

MANY, EXAMPLES = 50, 500


def published(split: SplitTrace, perplexity) -> np.ndarray:
    return premem.pre_memorization_accuracy(split.accuracy_or_skipped, split.nll, perplexity)


def extrapolated(split: SplitTrace, perplexity) -> np.ndarray:
    """(1, E) at the last evaluation."""
    return estimate.extrapolated(split.correct, split.samples, split.nll, perplexity)[None]


ESTIMATES: dict[str, Callable] = {
    "published": published,
    "shrunk": estimate.of_split,
    "extrapolated": extrapolated,
}


def simulated(chance_ME: np.ndarray, nll_ME: np.ndarray, perplexity, R: int, replicates: int, seed: int) -> dict:
    """For each estimate: bias, root mean square error and coverage, of a sample of 500 examples for the mean of all.

    The interval of the published and the shrunk one has the standard error of the published values, that of the
    extrapolated one its own; both are corrected for the finite number of examples. The bias is that against the truth
    of the examples drawn, which has the same mean and less noise.
    """
    rng, E = np.random.default_rng(seed), chance_ME.shape[1]
    truth_E = premem.pre_memorization_accuracy(chance_ME, nll_ME, perplexity)[-1]
    finite = np.sqrt(1 - EXAMPLES / E)
    bias, off = {name: [] for name in ESTIMATES}, {name: [] for name in ESTIMATES}
    within = {name: [] for name in ESTIMATES}
    for _ in range(replicates):
        some = rng.choice(E, EXAMPLES, replace=False)
        samples = np.full((len(nll_ME), EXAMPLES), R)
        correct = rng.binomial(R, chance_ME[:, some])
        split = SplitTrace(some, nll_ME[:, some], 0 * some, samples, correct, 0 * correct)
        error = finite * premem.standard_error(published(split, perplexity)[-1:])[0]
        for name, of in ESTIMATES.items():
            if name == "extrapolated" and R < 2:
                continue
            values = of(split, perplexity)[-1:]
            mine = error if name != "extrapolated" else finite * premem.standard_error(values)[0]
            bias[name].append(values.mean() - truth_E[some].mean())
            off[name].append(values.mean() - truth_E.mean())
            within[name].append(abs(off[name][-1]) <= 1.96 * mine)
    return {
        name: (float(np.mean(bias[name])), float(np.sqrt(np.mean(np.square(x)))), float(np.mean(within[name])))
        for name, x in off.items()
        if x
    }


def thinned(run: Run, r: int, rng) -> Run:
    """The run with r of the samples of each training example, at random where there are more."""
    train = run.train
    kept = np.minimum(train.samples, r)
    counts = rng.hypergeometric(train.correct, train.samples - train.correct, kept)
    less = replace(train, samples=kept, correct=counts, unparsed=0 * kept, decided_on_host=0)
    return replace(run, trace=replace(run.trace, splits=run.trace.splits | {"train": less}))


def r2(runs: list[Run], perplexities, of: Callable) -> float:
    xs = [premem.measured_mean(of(run.train, p)) for run, p in zip(runs, perplexities, strict=True)]
    p = agreement.points(xs, [run.test_accuracy for run in runs])
    return agreement.r2_identity(p.x, p.y)


def coverage(runs: list[Run], replicates: int, counts: list[int]) -> list[list[str]]:
    rows = []
    for run in runs:
        train, M = run.train, len(run.trace.steps)
        if train.samples.min() < MANY:
            continue
        for R in counts:
            for until in ((M + 1) // 2, M):
                found = simulated(train.accuracy[:until], train.nll[:until], run.published, R, replicates, 0)
                cells = [f"{100 * b:+.2f} / {100 * e:.2f} / {c:.3f}" for b, e, c in found.values()]
                rows.append([run.name, str(until), str(R), *cells, *["–"] * (len(ESTIMATES) - len(cells))])
    return rows


def fewer(name: str, runs: list[Run]) -> list[list[str]]:
    rows = []
    for rule in ("published", "heldout_quantile"):
        if study.rule_for(runs, rule) != rule:
            continue
        chosen = [mine.perplexity for mine in study.choose(runs, rule, 0.01, 0.0)]
        for title, of in (("published", published), ("shrunk", estimate.of_split)):
            values = []
            for r in (5, 2, 1):
                rng = np.random.default_rng(r)
                drawn = [runs] if all(run.train.samples.max() <= r for run in runs) else range(3)
                draws = [one if one is runs else [thinned(run, r, rng) for run in runs] for one in drawn]
                values.append(f"{np.mean([r2(few, chosen, of) for few in draws]):.3f}")
            rows.append([name, rule, title, *values])
    return rows


def record(name: str, runs: list[Run]) -> list[str]:
    chosen = study.choose(runs, "heldout_quantile", 0.01, 0.0)
    off = []
    for run, mine in zip(runs, chosen, strict=True):
        off_M = premem.measured_mean(estimate.of_split(run.train, mine.perplexity)) - run.test_accuracy
        off.append(off_M[np.isfinite(off_M)][-1])
    off = np.abs(off)
    return [name, str(len(off)), str(int(np.sum(off <= 0.05))), str(int(np.sum(off <= 0.1))), f"{off.mean():.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--samples", default="5,2,1", help="samples drawn, of which bias and coverage are shown")
    options = parser.parse_args()
    folders = dict(text.split("=", 1) for text in options.sets)
    rows = {"coverage": [], "fewer": [], "record": []}
    for name, folder in folders.items():
        if options.replicates:
            counts = [int(count) for count in options.samples.split(",")]
            rows["coverage"] += coverage(read_runs(folder, train_samples="most"), options.replicates, counts)
        runs = read_runs(folder)
        rows["fewer"] += fewer(name, runs)
        rows["record"].append(record(name, runs))
    titles = [f"{title}: bias / RMSE (points) / coverage" for title in ESTIMATES]
    if rows["coverage"]:
        printed(["run", "evaluations", "samples", *titles], rows["coverage"])
    printed(["runs", "threshold", "value", "R² with 5 samples", "2", "1"], rows["fewer"])
    printed(["runs", "of them", "end within 5 points", "within 10 points", "mean error"], rows["record"])


if __name__ == "__main__":
    main()
