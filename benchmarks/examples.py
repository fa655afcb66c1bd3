"""Which column of the audit ranks examples: correlation with the accuracy of examples that another run never saw.

    python -m benchmarks.examples GSM8K_DIR [--full=6epochs_full_lr2e-05] [--part=6epochs_half_lr2e-05]

The columns are of the run `full`; the truth is the mean accuracy over evaluations of the examples that the run `part`
held out. Prints, for the fewest and the most samples there are, Pearson's correlation of each column.
"""

import argparse

import numpy as np

from benchmarks.thresholds import printed
from premem_jax.analysis import audit, premem, study
from premem_jax.analysis.readers import read_runs


def correlations(folder: str, full: str, part: str, samples: str) -> dict[str, float]:
    runs = read_runs(folder, train_samples=samples)
    chosen = dict(zip((run.name for run in runs), study.choose(runs, "heldout_quantile", 0.01, 0.0), strict=True))
    of = lambda name: next(run for run in runs if name in run.name)
    run, heldout = of(full), of(part).trace.split("heldout")
    columns, train = audit.audit(run.trace, chosen[run.name]), run.train
    limit = chosen[run.name].perplexity
    columns["published"] = premem.pre_memorization_accuracy(train.accuracy_or_skipped, train.nll, limit)[-1]
    columns["final_accuracy"] = train.accuracy[-1]
    at = np.searchsorted(train.example, heldout.example)
    truth = heldout.accuracy.mean(axis=0)
    found = {}
    for name, values in columns.items():
        x = values[at].astype(np.float64)
        if name.endswith("_step"):
            x[x < 0] = run.trace.steps[-1] + 1
        known = np.isfinite(x)
        if name not in ("example", "cluster") and known.any() and np.ptp(x[known]) > 0:
            found[name] = float(np.corrcoef(x[known], truth[known])[0, 1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--full", default="6epochs_full_lr2e-05")
    parser.add_argument("--part", default="6epochs_half_lr2e-05")
    options = parser.parse_args()
    few, many = (correlations(options.folder, options.full, options.part, samples) for samples in ("fewest", "most"))
    order = sorted(few, key=lambda name: -abs(few[name]))
    rows = [[name, f"{few[name]:.3f}", f"{many[name]:.3f}"] for name in order]
    printed(["column", "fewest samples", "most"], rows)


if __name__ == "__main__":
    main()
