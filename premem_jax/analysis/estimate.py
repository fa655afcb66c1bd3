"""Estimates of the pre-memorization accuracy of single examples from few samples.

The published value is a running maximum of accuracies from R samples each, so noise biases it upwards. An example that
is not memorized at the end has no such bias: its value is its accuracy there. For the others, `shrunk` shrinks every
accuracy towards the mean of its group before taking the maximum. `kept` is the expected published value with fewer
samples.

All arrays are (M, E), M evaluations by E examples; results are (E,), at the last evaluation. Evaluations that did not
measure an example (no samples, or an NLL of NaN) are skipped; at the last one the result is NaN.
"""

import numpy as np
from scipy.stats import hypergeom

from premem_jax.analysis.premem import log_threshold

OVERDISPERSION_OF_ONE = 0.5  # with one sample each it cannot be told from the data


def published(accuracy_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float) -> np.ndarray:
    """(E,) min(accuracy at the end, the highest accuracy at any evaluation that had not memorized the example)."""
    known_ME = np.isfinite(accuracy_ME) & np.isfinite(nll_ME)
    best_E = _best(accuracy_ME, known_ME & (nll_ME >= log_threshold(perplexity)))
    return np.where(known_ME[-1], np.minimum(accuracy_ME[-1], best_E), np.nan)


def shrunk(correct_ME: np.ndarray, samples_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float) -> np.ndarray:
    """(E,) as `published`, from shrunk accuracies; unshrunk if the example is not memorized at the end."""
    memorized_ME = nll_ME < log_threshold(perplexity)
    smooth_ME = shrunk_accuracy(correct_ME, samples_ME, memorized_ME)
    raw_E = published(_accuracy(correct_ME, samples_ME), nll_ME, perplexity)
    return np.where(memorized_ME[-1], published(smooth_ME, nll_ME, perplexity), raw_E)


def shrunk_accuracy(correct_ME: np.ndarray, samples_ME: np.ndarray, memorized_ME: np.ndarray) -> np.ndarray:
    """(M, E) posterior means of the accuracies; NaN where nothing was sampled.

    The prior is a beta distribution, fitted to the counts by mean and variance, for each evaluation and separately for
    memorized and other examples.
    """
    smooth_ME = _accuracy(correct_ME, samples_ME)
    for m, group_ME in ((m, group) for group in (memorized_ME, ~memorized_ME) for m in range(len(samples_ME))):
        for samples in np.unique(samples_ME[m]):
            rows = group_ME[m] & (samples_ME[m] == samples)
            if samples and rows.sum() > 1:
                smooth_ME[m, rows] = _posterior_mean(correct_ME[m, rows], int(samples))
    return smooth_ME


def kept(correct_ME: np.ndarray, samples_ME: np.ndarray, nll_ME: np.ndarray, perplexity: float, r: int) -> np.ndarray:
    """(E,) the exact mean of `published` over all subsets of r samples of each evaluation.

    Raises:
      ValueError: r is below 1, or above the number of samples that some evaluation has.
    """
    known_ME = (samples_ME > 0) & np.isfinite(nll_ME)
    if r < 1 or np.any(samples_ME[known_ME] < r):
        raise ValueError(f"{r} samples cannot be kept of {samples_ME[known_ME].min(initial=samples_ME.max())}")
    unmemorized_ME = known_ME & (nll_ME >= log_threshold(perplexity))
    # The mean of a number in 0..r is the sum over t = 1..r of the chance that it is at least t.
    below_tME = np.stack([hypergeom.cdf(t - 1, samples_ME, correct_ME, r) for t in range(1, r + 1)])
    best_tE = 1 - np.prod(np.where(unmemorized_ME, below_tME, 1.0), axis=1)
    of_memorized_E = np.mean((1 - below_tME[:, -1]) * best_tE, axis=0)
    value_E = np.where(unmemorized_ME[-1], _accuracy(correct_ME, samples_ME)[-1], of_memorized_E)
    return np.where(known_ME[-1], value_E, np.nan)


def _posterior_mean(correct_E: np.ndarray, samples: int) -> np.ndarray:
    """Posterior mean of accuracies under a beta prior with mean p and overdispersion rho = 1 / (1 + a + b)."""
    p = correct_E.mean() / samples
    chance = samples * p * (1 - p)  # the variance if all had the same accuracy
    if chance == 0:
        return correct_E / samples
    rho = OVERDISPERSION_OF_ONE
    if samples > 1:
        rho = np.clip((correct_E.var(ddof=1) / chance - 1) / (samples - 1), 0, 1)
    return (rho * correct_E + (1 - rho) * p) / (rho * samples + 1 - rho)


def _accuracy(correct_ME: np.ndarray, samples_ME: np.ndarray) -> np.ndarray:
    return np.divide(correct_ME, samples_ME, out=np.full(samples_ME.shape, np.nan), where=samples_ME > 0)


def _best(accuracy_ME: np.ndarray, usable_ME: np.ndarray) -> np.ndarray:
    """(E,) the highest usable accuracy; 0 where none is."""
    return np.max(np.where(usable_ME, accuracy_ME, 0.0), axis=0)
