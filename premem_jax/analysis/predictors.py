"""Predictors of test accuracy, each as (M,) values over the evaluations of a run.

Sources: Kang et al. (arXiv 2411.07681) and their release for the metric and its variants; the others are obvious
baselines. Predictors that need gradients or weights were measured during the run (`Run.measures`). Average thresholded
confidence, which other runs calibrate, is in `thresholded_confidence.py`.
"""

from dataclasses import dataclass

import numpy as np

from premem_jax.analysis import estimate, premem
from premem_jax.analysis.runs import Run


@dataclass(frozen=True)
class Predictor:
    """Title and scoring of a predictor."""

    title: str
    is_accuracy: bool  # comparable with test accuracy as it is, by the line y = x
    uses_threshold: bool = False


PREDICTORS = {
    "pre_memorization_accuracy": Predictor("pre-memorization accuracy", True, True),
    "shrunk_estimate": Predictor("pre-memorization accuracy, shrunk estimate", True, True),
    "without_minimum": Predictor("without the min with current accuracy", True, True),
    "masked_accuracy": Predictor("masked accuracy, no running max", True, True),
    "accuracy_before_memorization": Predictor("last accuracy before memorization", True, True),
    "train_accuracy": Predictor("train accuracy", True),
    "first_accuracy": Predictor("train accuracy at the first evaluation", True),
    "average_thresholded_confidence": Predictor("average thresholded confidence", True),
    "gradient_variance": Predictor("gradient variance", False),
    "distance_from_initialization": Predictor("distance from initialization, squared", False),
    "train_nll": Predictor("train loss (mean NLL)", False),
    "train_perplexity": Predictor("mean train perplexity", False),
    "fraction_memorized": Predictor("fraction memorized", False, True),
    "log_train_examples": Predictor("log of the training-set size", False),
}


def of(name: str) -> Predictor:
    """The predictor called `name`; an unknown one, from `Run.measures`, is not an accuracy."""
    return PREDICTORS.get(name, Predictor(name.replace("_", " "), False))


def evaluate(run: Run, perplexity: float | np.ndarray) -> dict[str, np.ndarray]:
    """(M,) float64 of each predictor, unweighted means over the training examples; NaN where not measured.

    Args:
      run: the run; its `measures` are predictors as they are.
      perplexity: the memorization threshold, or (M,), one per evaluation.
    """
    train = run.train
    accuracy_ME, nll_ME = train.accuracy_or_skipped, train.nll
    masked_ME = premem.masked_accuracy(accuracy_ME, nll_ME, perplexity)
    mean = premem.measured_mean
    accuracy_M = train.mean_accuracy
    return {
        "pre_memorization_accuracy": mean(premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)),
        "shrunk_estimate": mean(estimate.of_split(train, perplexity)),
        "without_minimum": mean(premem.running_maximum(masked_ME)),
        "masked_accuracy": mean(masked_ME),
        "accuracy_before_memorization": mean(accuracy_before_memorization(accuracy_ME, nll_ME, perplexity)),
        "train_accuracy": accuracy_M,
        "first_accuracy": np.full(len(accuracy_M), first_trained(accuracy_M, run.trace.steps)),
        "train_nll": mean(nll_ME),
        "train_perplexity": mean(np.exp(nll_ME)),
        "fraction_memorized": premem.fraction_memorized(nll_ME, perplexity),
        "log_train_examples": np.full(len(accuracy_M), np.log(len(train.example))),
        **run.measures,
    }


def accuracy_before_memorization(
    accuracy_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float | np.ndarray
) -> np.ndarray:
    """(M, E) float64: min(accuracy at m, accuracy at the last evaluation before the target is first memorized).

    Until the target is memorized, the accuracy at m itself; 0 if it is memorized from the start. NaN where accuracy or
    NLL was not measured at m; such evaluations are skipped.
    """
    masked_ME = premem.masked_accuracy(accuracy_ME, nll_ME, perplexity)
    known_ME = ~np.isnan(masked_ME)
    crossed_ME = np.logical_or.accumulate(known_ME & (nll_ME < premem.log_threshold(perplexity)), axis=0)
    usable_ME = known_ME & ~crossed_ME
    evaluation_M1 = np.arange(len(masked_ME))[:, None]
    last_ME = np.maximum.accumulate(np.where(usable_ME, evaluation_M1, -1), axis=0)
    before_ME = np.where(last_ME >= 0, np.take_along_axis(np.asarray(accuracy_ME), np.maximum(last_ME, 0), axis=0), 0.0)
    return np.where(known_ME, np.minimum(accuracy_ME, before_ME), np.nan)


def first_trained(values_M: np.ndarray, steps_M: np.ndarray) -> float:
    """The first measured value after the start of training; NaN if there is none."""
    known = np.flatnonzero(np.isfinite(values_M) & (steps_M > 0))
    return float(values_M[known[0]]) if len(known) else np.nan
