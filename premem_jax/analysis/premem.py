"""Pre-memorization accuracy: the accuracy on an example before its reference solution was memorized.

Source: Kang et al., "What Do Learning Dynamics Reveal About Generalization in LLM Reasoning?", arXiv 2411.07681, and
their release. There, a target is memorized if its perplexity is strictly below the threshold, and the minimum with the
current accuracy is taken at every checkpoint.

All arrays are (M, E): M evaluations in order of training, E examples. NaN means "not measured". The threshold is one
perplexity, or (M,), one per evaluation.
"""

import math

import numpy as np

from premem_jax.errors import UserError


def log_threshold(perplexity: float | np.ndarray) -> float | np.ndarray:
    """The mean target NLL, in nats per token, of a perplexity. Raises UserError below 1.

    Scalar in, scalar out; (M,) in, (M, 1) out.
    """
    if np.ndim(perplexity):
        return np.array([[log_threshold(float(p))] for p in np.asarray(perplexity)])
    if not (math.isfinite(perplexity) and perplexity >= 1):
        raise UserError(f"The memorization threshold is a perplexity of at least 1, and {perplexity} is not.")
    return math.log(perplexity)


def masked_accuracy(accuracy_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float | np.ndarray) -> np.ndarray:
    """(M, E) float64: the accuracy where the target is not memorized (exp(nll) >= perplexity), else 0.

    NaN where accuracy or NLL was not measured. The comparison is `nll >= log(perplexity)` in float64.
    """
    accuracy_ME = np.asarray(accuracy_ME, np.float64)
    nll_ME = np.asarray(nll_ME, np.float64)
    masked_ME = np.where(nll_ME >= log_threshold(perplexity), accuracy_ME, 0.0)
    return np.where(np.isnan(accuracy_ME) | np.isnan(nll_ME), np.nan, masked_ME)


def pre_memorization_accuracy(
    accuracy_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float | np.ndarray
) -> np.ndarray:
    """(M, E) float64: min(accuracy at m, running maximum of the masked accuracy up to m).

    Where accuracy or NLL was not measured at evaluation m, the result is NaN at m, and m does not enter the running
    maximum.
    """
    masked_ME = masked_accuracy(accuracy_ME, nll_ME, perplexity)
    return np.minimum(accuracy_ME, running_maximum(masked_ME))


def running_maximum(values_ME: np.ndarray) -> np.ndarray:
    """(M, E) the highest measured value up to each evaluation; NaN where that evaluation was not measured."""
    best_ME = values_ME.copy()
    for m in range(1, len(best_ME)):  # by rows it takes a tenth of the time of fmax.accumulate
        np.fmax(best_ME[m - 1], best_ME[m], out=best_ME[m])  # fmax passes over NaN
    return np.where(np.isnan(values_ME), np.nan, best_ME)


def settled(accuracy_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float | np.ndarray) -> np.ndarray:
    """(M, E) bool: where the pre-memorization accuracy is 0 whatever the accuracy at that evaluation.

    This holds if the target is memorized and no earlier evaluation had a masked accuracy above 0. The accuracy at the
    evaluation itself is not used, so the answer is known before sampling. An example that is settled at one threshold
    is settled at every higher one.
    """
    masked_ME = masked_accuracy(accuracy_ME, nll_ME, perplexity)
    solved_ME = np.logical_or.accumulate(masked_ME > 0, axis=0)
    before_ME = np.concatenate([np.zeros_like(solved_ME[:1]), solved_ME[:-1]])
    return (np.asarray(nll_ME, np.float64) < log_threshold(perplexity)) & ~before_ME


def fraction_memorized(nll_ME: np.ndarray, perplexity: float | np.ndarray) -> np.ndarray:
    """(M,) float64: the share of measured examples with exp(nll) < perplexity; NaN if none was measured."""
    nll_ME = np.asarray(nll_ME, np.float64)
    memorized_ME = np.where(np.isnan(nll_ME), np.nan, nll_ME < log_threshold(perplexity))
    return measured_mean(memorized_ME)


def first_memorized(nll_ME: np.ndarray, perplexity: float | np.ndarray) -> np.ndarray:
    """(E,) int: the first evaluation with exp(nll) < perplexity; M if there is none."""
    memorized_ME = np.asarray(nll_ME, np.float64) < log_threshold(perplexity)
    return np.where(memorized_ME.any(axis=0), memorized_ME.argmax(axis=0), len(memorized_ME))


def standard_error(values_ME: np.ndarray) -> np.ndarray:
    """(M,) float64: the standard error of `measured_mean` over examples; NaN with fewer than two."""
    count_M, mean_M = (~np.isnan(values_ME)).sum(axis=1), measured_mean(values_ME)
    square_M = np.nansum((values_ME - mean_M[:, None]) ** 2, axis=1)
    variance_M = np.divide(square_M, count_M - 1, out=np.full(len(count_M), np.nan), where=count_M > 1)
    return np.sqrt(variance_M / np.maximum(count_M, 1))


def measured_mean(values_ME: np.ndarray) -> np.ndarray:
    """(M,) float64: the unweighted mean over the measured examples of each evaluation; NaN if there are none."""
    measured_ME = ~np.isnan(values_ME)
    count_M = measured_ME.sum(axis=1)
    total_M = np.sum(values_ME, axis=1, where=measured_ME, dtype=np.float64)
    return np.divide(total_M, count_M, out=np.full(len(count_M), np.nan), where=count_M > 0)
