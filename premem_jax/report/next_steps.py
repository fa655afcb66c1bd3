"""What to do next, as far as it follows from the numbers of a run or of a study."""

from collections.abc import Mapping

import numpy as np

from premem_jax.analysis.threshold import MIN_EXAMPLES, Threshold
from premem_jax.analysis.trace import Trace

POINTS = 0.02  # a change of an accuracy that counts
FAR = 0.1  # an error of a prediction that is large
FEW_SAMPLES, FEW_HELDOUT, FEW_RUNS = 5, 1000, 8


def of_run(
    trace: Trace, curves: Mapping[str, np.ndarray], threshold: Threshold | None, train: str = "train"
) -> list[str]:
    """Sentences for the page of one run; none that its numbers do not give reason for."""
    metric_M, epochs = curves["estimate"], curves["epoch"]
    known = np.flatnonzero(np.isfinite(metric_M))
    if not len(known):
        return _missing(trace, threshold, train)
    last, found = known[-1], []
    memorized = curves["fraction_memorized"][last]
    settled = known[np.flatnonzero(metric_M[known] >= metric_M[known].max() - POINTS)[0]]
    if epochs[settled] < epochs[last]:
        found.append(
            f"Stop earlier: after epoch {epochs[settled]:.3g} the pre-memorization accuracy gains less than "
            f"{100 * POINTS:.0f} points ({metric_M[settled]:.1%} there, {metric_M[last]:.1%} at epoch "
            f"{epochs[last]:.3g})."
        )
    elif len(known) > 1 and memorized < 0.9:
        found.append(
            f"Train longer: the pre-memorization accuracy still rises at the end, and {memorized:.0%} of the examples "
            "are memorized (--config.extend=true with more train.epochs)."
        )
    train_accuracy = curves["train_accuracy"][last]
    if train_accuracy - metric_M[last] > FAR:
        found.append(
            f"Do not go by the train accuracy: {100 * (train_accuracy - metric_M[last]):.0f} points of it come after "
            "memorization. The group fragile below has these examples; more of their kind is what the model lacks "
            "(configs/curate.py collects it)."
        )
    test = curves["test_accuracy"]
    tested = known[np.isfinite(test[known])]
    if not len(tested):
        found.append("Measure the test accuracy once, to see how far the prediction is off on this task.")
    elif abs(error := metric_M[tested[-1]] - test[tested[-1]]) > FAR:
        found.append(
            f"Look at more than this run: its prediction is off by {100 * error:+.0f} points. Several runs, of other "
            "rates and sizes, tell whether that is the rule on this task (configs/sweep_arithmetic.py is an example)."
        )
    return found + _measurement(trace, curves, threshold, train, known)


def of_study(task: Mapping) -> list[str]:
    """Sentences for the page of a study, from the results of one task in `summary.json`."""
    found, row = [], task["predictors"].get("pre_memorization_accuracy")
    if task["runs"] < FEW_RUNS:
        found.append(
            f"Add runs: of {task['runs']}, the interval over runs says little; a dozen of several rates is usual."
        )
    if not row:
        return [*found, "Measure likelihood and samples of the training examples, and the test accuracy, in each run."]
    r2 = row["r2_identity"]
    best = {
        name: other["r2_identity"] for name, other in task["predictors"].items() if other["r2_identity"] is not None
    }
    if r2 is not None and r2 > 0.8:
        found.append(
            f"Choose runs and epochs by the pre-memorization accuracy: here it is the test accuracy up to R² {r2:.2f}."
        )
    elif best and (name := max(best, key=best.get)) != "pre_memorization_accuracy":
        found.append(
            f"Look at the table of rules: with this threshold {name.replace('_', ' ')} is nearer to the test accuracy "
            f"(R² {best[name]:.2f} against {r2:.2f})."
        )
    if task["threshold_looks_at_test"]:
        found.append("Repeat with --config.threshold.rule=heldout_quantile: this threshold was tuned on test accuracy.")
    return found


def _missing(trace: Trace, threshold: Threshold | None, train: str) -> list[str]:
    split = trace.splits.get(train)
    wanted = {
        "an accuracy evaluator on the training examples": split is None or not split.samples.any(),
        "a likelihood evaluator on the training examples": split is None or not np.isfinite(split.nll).any(),
        f"a threshold (threshold.rule=given, or the likelihood of {MIN_EXAMPLES} held-out examples)": not threshold,
    }
    lacks = [name for name, missing in wanted.items() if missing]
    return [f"For the pre-memorization accuracy, add {' and '.join(lacks)}."] if lacks else []


def _measurement(
    trace: Trace, curves: Mapping[str, np.ndarray], threshold: Threshold, train: str, known: np.ndarray
) -> list[str]:
    """What would make the numbers themselves better."""
    found, memorized = [], curves["fraction_memorized"]
    measured = np.flatnonzero(np.isfinite(memorized) & (curves["epoch"] > 0))
    if len(measured) and memorized[measured[0]] > 0.2:
        found.append(
            f"Evaluate earlier: {memorized[measured[0]]:.0%} of the examples are memorized at the first evaluation, "
            f"epoch {curves['epoch'][measured[0]]:.3g}, and keep the value that they had before it."
        )
    samples = trace.splits[train].samples[known[-1]].max()
    if 0 < samples < FEW_SAMPLES:
        found.append(
            f"Draw more than {samples} samples: the published value, a maximum over evaluations of so few, is too high."
        )
    heldout = threshold.detail.get("heldout_examples", FEW_HELDOUT)
    if heldout < FEW_HELDOUT:
        found.append(
            f"Hold out more than {heldout} examples: the threshold is a 1 % quantile, which so few do not fix."
        )
    return found
