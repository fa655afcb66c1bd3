"""Estimates of the pre-memorization accuracy of single examples from few samples.

The published value is a running maximum of accuracies from R samples each, so noise biases it upwards. An example that
is not memorized has no such bias: its value is its accuracy now. For the others, `shrunk` shrinks every accuracy
towards the mean of its group before taking the maximum. `kept` is the expected published value with fewer samples, and
`extrapolated` what it would be with endlessly many.

All arrays are (M, E), M evaluations by E examples. Evaluations that did not measure an example (no samples, or an NLL
of NaN) are skipped; their own value is NaN. A perplexity is one threshold, or (M,), one per evaluation.
"""

import numpy as np

from premem_jax.analysis import premem
from premem_jax.analysis.premem import log_threshold
from premem_jax.analysis.trace import SplitTrace

Perplexity = float | np.ndarray

OVERDISPERSION_OF_ONE = 0.5  # with one sample each it cannot be told from the data


def of_split(split: SplitTrace, perplexity: Perplexity) -> np.ndarray:
    """(M, E) shrunk values of a split of a trace."""
    return shrunk(split.correct, split.samples, split.nll, perplexity, split.skipped_ME)


def shrunk(
    correct_ME: np.ndarray,
    samples_ME: np.ndarray,
    nll_ME: np.ndarray,
    perplexity: Perplexity,
    skipped_ME: np.ndarray | bool = False,
) -> np.ndarray:
    """(M, E) as `premem.pre_memorization_accuracy`, from shrunk accuracies where an example is memorized.

    Where sampling was skipped, the example is memorized and the published value 0; the accuracy is taken for 1, so the
    value is that of the evaluations before.
    """
    memorized_ME = nll_ME < log_threshold(perplexity)
    smooth_ME = np.where(skipped_ME, 1.0, shrunk_accuracy(correct_ME, samples_ME, memorized_ME))
    of = lambda accuracy_ME: premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)
    return np.where(memorized_ME, of(smooth_ME), of(_accuracy(correct_ME, samples_ME)))


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


def kept(
    correct_ME: np.ndarray, samples_ME: np.ndarray, nll_ME: np.ndarray, perplexity: Perplexity, r: int
) -> np.ndarray:
    """(E,) the exact mean of the published value at the last evaluation, over all subsets of r samples of each.

    Raises:
      ValueError: r is below 1, or above the number of samples that some evaluation has.
    """
    from scipy.stats import hypergeom  # which takes half a second to import

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


def extrapolation(split: SplitTrace, perplexity: Perplexity) -> float:
    """Mean over examples of `extrapolated`; NaN with fewer than two samples at some evaluation."""
    known_ME = (split.samples > 0) & np.isfinite(split.nll)
    if not known_ME.any() or split.samples[known_ME].min() < 2:
        return np.nan
    value_E = extrapolated(split.correct, split.samples, split.nll, perplexity)
    return float(premem.measured_mean(np.where(split.skipped_ME[-1], 0.0, value_E)[None])[0])


def extrapolated(
    correct_ME: np.ndarray, samples_ME: np.ndarray, nll_ME: np.ndarray, perplexity: Perplexity
) -> np.ndarray:
    """(E,) (√R θ_R - √(R-1) θ_{R-1}) / (√R - √(R-1)) at the last evaluation, where θ_r is `kept`.

    This removes a bias that falls with 1 / √R, as that of a maximum of nearly equal accuracies does, and assumes
    nothing else. R is the lowest number of samples of an evaluation. The values of single examples are of use only in
    means; they may be outside of 0 to 1.

    Raises:
      ValueError: an evaluation has fewer than two samples.
    """
    known_ME = (samples_ME > 0) & np.isfinite(nll_ME)
    R = int(samples_ME[known_ME].min(initial=samples_ME.max(initial=0)))
    theta = lambda r: kept(correct_ME, samples_ME, nll_ME, perplexity, r)
    return (np.sqrt(R) * theta(R) - np.sqrt(R - 1) * theta(R - 1)) / (np.sqrt(R) - np.sqrt(R - 1))


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
