"""What each strategy of curation would have chosen in recorded runs, and how wrong other runs are about it.

    python -m benchmarks.selections FOLDER [--full=6epochs_full_lr2e-05] [--part=6epochs_half_lr2e-05] [--share=0.3]

A strategy sees the trace of the run `full`. The truth about an example is its error, the mean over evaluations, in the
run `part`, which held it out. Prints, for the fewest samples there are and for the most: the error of the chosen
examples; the part of what was possible (0: as at random; 1: the share with the highest error); and how many of the
chosen ones pre-memorization accuracy chooses as well.
"""

import argparse
import dataclasses

import numpy as np

from benchmarks.thresholds import printed
from premem_jax.analysis import selection, study
from premem_jax.analysis.readers import read_runs

BY_TRACE = "pre_memorization", "pre_memorization_published", "early_accuracy", "high_nll", "learnability", "random"


def found(folder: str, full: str, part: str, share: float, samples: str) -> tuple[float, dict[str, tuple]]:
    """The error of all examples, and (error of the chosen, part of the possible, agreement) of each strategy."""
    runs = read_runs(folder, train_samples=samples)
    chosen = dict(zip((run.name for run in runs), study.choose(runs, "heldout_quantile", 0.01, 0.0), strict=True))
    of = lambda name: next(run for run in runs if name in run.name)
    run, heldout = of(full), of(part).trace.split("heldout")
    error_E = 1 - heldout.accuracy.mean(axis=0)
    at = np.searchsorted(run.train.example, heldout.example)
    seen = selection.Seen(run.trace, chosen[run.name].perplexity, share)
    other = dataclasses.replace(seen, seed=1)  # ties are broken by the seed, and random ones are all ties
    weights = {name: selection.STRATEGIES[name](other if name == "random" else seen)[at] for name in BY_TRACE}
    best = np.sort(error_E)[-round(share * len(error_E)) :].mean()
    metric = weights["pre_memorization"]
    rows = {}
    for name, weight_E in weights.items():
        error = np.average(error_E, weights=weight_E)
        agreement = np.average(metric > 0, weights=weight_E)
        rows[name] = error, (error - error_E.mean()) / (best - error_E.mean()), agreement
    return error_E.mean(), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--full", default="6epochs_full_lr2e-05")
    parser.add_argument("--part", default="6epochs_half_lr2e-05")
    parser.add_argument("--share", type=float, default=0.3)
    options = vars(parser.parse_args())
    (mean, few), (_, many) = (found(**options, samples=samples) for samples in ("fewest", "most"))
    print(f"error of all examples: {mean:.3f}")
    columns = ["strategy", *(f"{name}, {n}" for n in ("fewest", "most") for name in ("error", "possible", "agreement"))]
    printed(columns, [[name, *(f"{value:.3f}" for value in (*few[name], *many[name]))] for name in few])


if __name__ == "__main__":
    main()
