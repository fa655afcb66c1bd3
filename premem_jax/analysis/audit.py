"""What a trace tells about single examples besides the metric: difficulty, data map, suspect labels and more.

Sources: data map, Swayamdipta et al. (arXiv 2009.10795); forgetting events, Toneva et al. (1812.05159); learnability,
LILO; clusters of loss curves, S2L (2403.07384); over-memorization (2508.04117); memorization score,
Feldman and Zhang (2008.03703). All use the training split; an evaluation counts where it sampled an example.

Arrays are (M, E), M evaluations by E examples, or (E,).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.vq import kmeans2

from premem_jax.analysis import estimate, premem
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import SplitTrace, Trace

SOLVED = 0.5  # an accuracy from which an example counts as solved
CLUSTERS = 8


def audit(trace: Trace, threshold: Threshold, train: str = "train", seed: int = 0) -> dict[str, np.ndarray]:
    """`example` and the columns of `COLUMNS`, each (E,); unknown steps are -1, other unknown values NaN.

    `agreement` is NaN where the trace has no hashes of answers.
    """
    split = trace.split(train)
    accuracy_ME, memorized_ME = split.accuracy, split.nll < premem.log_threshold(threshold.perplexity)
    first = first_evaluation(trace, split)
    first_E = accuracy_ME[first]
    smooth_E = estimate.shrunk_accuracy(split.correct, split.samples, memorized_ME)[first]
    known_ME = ~np.isnan(accuracy_ME)
    open_ME = known_ME & ~memorized_ME
    open_ME[:first] = False
    at_once_E = memorized_ME[first]
    fallen_back = lambda value_E: np.where(at_once_E, first_E, value_E)
    solved_E, memorized_E = _first_step(trace, accuracy_ME >= SOLVED), _first_step(trace, memorized_ME)
    never = trace.steps[-1] + 1
    correct_E, samples_E, agreed_E = counts(split, open_ME)
    return {
        "example": split.example,
        "first_accuracy": first_E,
        "unmemorized_accuracy": fallen_back(_mean(accuracy_ME, open_ME)),
        "before_memorization": fallen_back(estimate.of_split(split, threshold.perplexity)[-1]),
        "mean_accuracy": _mean(accuracy_ME, known_ME),
        "deviation": np.sqrt(_mean((accuracy_ME - _mean(accuracy_ME, known_ME)) ** 2, known_ME)),
        "first_nll": split.nll[first],
        "solved_step": solved_E,
        "memorized_step": memorized_E,
        "memorized_first": (memorized_E >= 0) & (memorized_E <= np.where(solved_E < 0, never, solved_E)),
        "memorized_at_once": at_once_E,
        "forgotten": forgetting(accuracy_ME),
        "learnability": smooth_E * (1 - smooth_E),
        "cluster": clusters(split.nll[first:], CLUSTERS, seed),
        "agreement": agreed_E / np.where(samples_E > 0, samples_E, np.nan),
        "suspicion": suspicion(correct_E, samples_E, agreed_E),
    }


def first_evaluation(trace: Trace, split: SplitTrace) -> int:
    """The first evaluation after the start of training with samples and likelihoods; 0 if there is none."""
    both_M = (split.samples > 0).any(axis=1) & np.isfinite(split.nll).any(axis=1) & (trace.steps > 0)
    return int(both_M.argmax())


def counts(split: SplitTrace, where_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct samples, samples, and samples with the commonest wrong answer, each (E,), at the marked evaluations.

    A sample counts as much as the mean accuracy of the marked examples at its evaluation, because a model that solves
    little also agrees on nonsense. Samples agree if the hashes of their answers do. The last is NaN for a trace without
    hashes.
    """
    weight_M = np.nan_to_num(premem.measured_mean(np.where(where_ME, split.accuracy, np.nan)))
    weight_ME = where_ME * weight_M[:, None]
    correct_E, samples_E = (np.sum(weight_ME * x, axis=0) for x in (split.correct, split.samples))
    if split.answers is None or not split.answers.any():
        return correct_E, samples_E, np.full(len(correct_E), np.nan)
    agreed_E = np.zeros(len(correct_E))
    for e in np.flatnonzero(where_ME.any(axis=0)):
        drawn_MR = split.answers[where_ME[:, e], e]
        wrong_MR = (drawn_MR > 0) & (drawn_MR % 2 == 0)  # the lowest bit marks correct ones
        weight_MR = np.broadcast_to(weight_ME[where_ME[:, e], e][:, None], drawn_MR.shape)
        _, place = np.unique(drawn_MR[wrong_MR], return_inverse=True)
        agreed_E[e] = np.bincount(place, weight_MR[wrong_MR]).max(initial=0)
    return correct_E, samples_E, agreed_E


def suspicion(correct_E: np.ndarray, samples_E: np.ndarray, agreed_E: np.ndarray) -> np.ndarray:
    """(E,) how much rather the samples say another answer than the label: (agreed - correct) / (samples + 2).

    Of `counts`, while the target is not memorized; those of several runs may be added. Without hashes of answers,
    agreed is taken for 0: then low accuracy alone is suspect, and hard examples are, too. NaN without samples.
    """
    return np.where(samples_E > 0, (np.nan_to_num(agreed_E) - correct_E - 1) / (samples_E + 2), np.nan)


def forgetting(accuracy_ME: np.ndarray) -> np.ndarray:
    """(E,) number of evaluations with an accuracy of at least 1/2 that are followed by one below it."""
    now_E, events_E = np.full(accuracy_ME.shape[1], np.nan), np.zeros(accuracy_ME.shape[1], np.int64)
    for accuracy_E in accuracy_ME:
        known_E = ~np.isnan(accuracy_E)
        events_E += known_E & (now_E >= SOLVED) & (accuracy_E < SOLVED)
        now_E = np.where(known_E, accuracy_E, now_E)
    return events_E


def clusters(nll_ME: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """(E,) k-means of the curves of log NLL over the evaluations that measured all; -1 if there are none."""
    whole_M = np.isfinite(nll_ME).all(axis=1)
    examples = nll_ME.shape[1]
    if not whole_M.any() or not examples:
        return np.full(examples, -1)
    curves_EM = np.log(np.maximum(nll_ME[whole_M], 1e-5)).T
    k = min(k, len(np.unique(curves_EM, axis=0)))
    centers, label_E = kmeans2(curves_EM, k, minit="++", seed=seed)
    order = np.argsort(np.argsort(-centers[:, -1]))  # the first cluster is the one with the highest loss at the end
    return order[label_E]


def over_memorization(heldout_nll_ME: np.ndarray | None) -> np.ndarray:
    """(M,) mean held-out NLL above its minimum up to then: the model finds unseen solutions less and less likely."""
    if heldout_nll_ME is None:
        return np.zeros(0)
    mean_M = premem.measured_mean(heldout_nll_ME)
    return mean_M - np.fmin.accumulate(mean_M)


def memorization(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Of each example that some runs trained on and others did not: the mean accuracy of the first minus that of these.

    At the last evaluations. Only of runs whose held-out examples have ids of their own, as those of one data set do.
    Returns `example` and `memorization` (E,), sorted by example.
    """
    inside, outside = [], []
    for run in runs if all(run.one_data_set for run in runs) else ():
        for name, found in (("train", inside), (run.heldout, outside)):
            if name in run.trace.splits:
                split = run.trace.splits[name]
                accuracy_E = split.accuracy[-1]
                found.append((split.example[~np.isnan(accuracy_E)], accuracy_E[~np.isnan(accuracy_E)]))
    (ids, mean_in), (others, mean_out) = _by_example(inside), _by_example(outside)
    both, i, j = np.intersect1d(ids, others, return_indices=True)
    return {"example": both, "memorization": mean_in[i] - mean_out[j]}


def pooled(audited: Sequence[tuple[Run, Threshold]]) -> dict[str, np.ndarray]:
    """Suspicion of each training example over several runs: `example`, `accuracy`, `agreement`, `suspicion` (E,).

    The accuracy is that of `counts`, while not memorized. An answer on which samples agree is looked for in each run.
    """
    every = np.unique(np.concatenate([run.train.example for run, _ in audited]))
    total = np.zeros((3, len(every)))
    for run, threshold in audited:
        split = run.train
        open_ME = (split.samples > 0) & ~(split.nll < premem.log_threshold(threshold.perplexity))
        open_ME[: first_evaluation(run.trace, split)] = False
        total[:, np.searchsorted(every, split.example)] += counts(split, open_ME)
    correct_E, samples_E, agreed_E = total
    some_E = np.where(samples_E > 0, samples_E, np.nan)
    values = dict(accuracy=correct_E / some_E, agreement=agreed_E / some_E)
    return {"example": every, **values, "suspicion": suspicion(correct_E, samples_E, agreed_E)}


def ranked(values_E: np.ndarray, *ties: np.ndarray) -> np.ndarray:
    """Indices from the highest value to the lowest, NaN last; equals by the values of `ties`, then by their order."""
    return np.lexsort([-np.nan_to_num(x, nan=-np.inf) for x in (*reversed(ties), values_E)])


def summary(columns: Mapping[str, np.ndarray], heldout_nll_ME: np.ndarray | None) -> dict[str, float | int]:
    """Numbers of the whole set: how many were memorized at once or before they were solved, and over-memorization."""
    above_M = over_memorization(heldout_nll_ME)
    known = above_M[np.isfinite(above_M)]
    return {
        "examples": len(columns["example"]),
        "memorized_at_once": int(columns["memorized_at_once"].sum()),
        "memorized_first": int(columns["memorized_first"].sum()),
        "never_solved": int(np.sum(columns["solved_step"] < 0)),
        "forgotten": int(np.sum(columns["forgotten"] > 0)),
        "over_memorization": float(known[-1]) if len(known) else np.nan,
    }


def _mean(values_ME: np.ndarray, where_ME: np.ndarray) -> np.ndarray:
    count_E = where_ME.sum(axis=0)
    total_E = np.sum(values_ME, axis=0, where=where_ME)
    return np.divide(total_E, count_E, out=np.full(len(count_E), np.nan), where=count_E > 0)


def _first_step(trace: Trace, holds_ME: np.ndarray) -> np.ndarray:
    return np.where(holds_ME.any(axis=0), trace.steps[holds_ME.argmax(axis=0)], -1)


def _by_example(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids, and the mean value of each."""
    if not found:
        return np.zeros(0, np.int64), np.zeros(0)
    ids, place = np.unique(np.concatenate([ids for ids, _ in found]), return_inverse=True)
    return ids, np.bincount(place, np.concatenate([values for _, values in found])) / np.bincount(place)
