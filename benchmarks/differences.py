"""What the difference between the estimate and the test accuracy of finished runs is made of.

    python -m benchmarks.differences RUN [RUN ...] [--epochs=1,2,4,7,11]

With `--epochs`, as if only these evaluations and the last had been made. Prints in Markdown, in percent and points: the
estimate; the mean accuracy of each training example at its last evaluation before it was memorized (0 if there was
none); what the maximum over evaluations adds to it, together with the minimum and the shrinkage; by how much that
accuracy is ahead of the test accuracy at the same evaluations; that test accuracy; and the one at the end.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.thresholds import printed
from premem_jax.analysis import estimate, premem, threshold
from premem_jax.analysis.trace import read_trace

TITLES = [
    "run",
    "epochs",
    "estimate",
    "last accuracy before memorization",
    "the maximum adds",
    "ahead of test accuracy then",
    "test accuracy then",
    "at the end",
    "off by",
]


def row(run: Path, epochs: list[float]) -> list[str]:
    trace = read_trace(run / "trace")
    last = len(trace.epochs) - 1
    at = [m for m in range(last + 1) if not epochs or m == last or np.isclose(trace.epochs[m], epochs).any()]
    train, test_M = trace.split("train"), premem.measured_mean(trace.split("test").accuracy)[at]
    correct_ME, samples_ME, nll_ME = (values[at] for values in (train.correct, train.samples, train.nll))
    limit = threshold.heldout_quantile(trace.split("heldout").nll[at]).perplexity
    value = estimate.shrunk(correct_ME, samples_ME, nll_ME, limit)[-1].mean()
    unmemorized_ME = nll_ME >= premem.log_threshold(limit)
    ever_E = unmemorized_ME.any(axis=0)
    last_E = len(at) - 1 - unmemorized_ME[::-1].argmax(axis=0)
    before = np.mean(ever_E * (correct_ME / samples_ME)[last_E, np.arange(len(last_E))])
    then = np.mean(ever_E * test_M[last_E])
    end = test_M[-1]
    percent = lambda x: f"{100 * x:.1f}"
    points = lambda x: f"{100 * x:+.1f}"
    shown = ", ".join(f"{trace.epochs[m]:.3g}" for m in at)
    numbers = [percent(value), percent(before), points(value - before), points(before - then), percent(then)]
    return [run.name, shown, *numbers, percent(end), points(value - end)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--epochs", default="")
    options = parser.parse_args()
    epochs = [float(epoch) for epoch in options.epochs.split(",") if epoch]
    printed(TITLES, [row(run, epochs) for run in options.runs])


if __name__ == "__main__":
    main()
