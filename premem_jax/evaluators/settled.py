"""Settled examples need no samples: their pre-memorization accuracy is 0 whatever the responses."""

from collections.abc import Mapping

import numpy as np
from etils.epath import Path

from premem_jax.analysis import premem, trace
from premem_jax.analysis.conclusion import threshold_of
from premem_jax.evaluators.base import Evaluator, Split

Columns = Mapping[str, np.ndarray]


class Unsettled:
    """Selects the rows of an evaluator with `skip_settled` from the trace so far; for other evaluators, all rows."""

    def __init__(self, folder: Path, threshold: Mapping, once=lambda function: function()):
        """`folder`: the trace; `threshold`: the settings of its rule, as in a config.

        `once` calls a function in one process and broadcasts the result.
        """
        self._folder, self._threshold, self._once = folder, threshold, once

    def __call__(self, evaluator: Evaluator, splits: Mapping[str, Columns], step: int, member: str = "") -> np.ndarray:
        """(E,) bool, given the columns of all splits so far at `step`; all rows where these give no threshold."""
        if not evaluator.skip_settled or "target_nll" not in splits[evaluator.split.name]:
            return np.ones(len(evaluator.split.data), bool)
        return ~np.array(self._once(lambda: self._settled(evaluator.split, splits, step, member).tolist()), bool)

    def _settled(self, split: Split, splits: Mapping[str, Columns], step: int, member: str) -> np.ndarray:
        past = trace.NOTHING
        if any(earlier < step for earlier in trace.evaluation_steps(self._folder)):
            past = trace.read_trace(self._folder, up_to=step - 1, member=member)
        heldout = self._threshold["split"]
        chosen = threshold_of(_nll(past, splits, heldout), **self._threshold)
        nll_ME = _nll(past, splits, split.name)
        accuracy_ME = np.full(nll_ME.shape, np.nan)
        if split.name in past.splits:
            before = past.splits[split.name]
            accuracy_ME[:-1] = before.accuracy_or_skipped[:, np.searchsorted(before.example, split.data.ids)]
        if chosen is None:
            return np.zeros(len(split.data), bool)
        return premem.settled(accuracy_ME, nll_ME, chosen.perplexity)[-1]


def _nll(past: trace.Trace, splits: Mapping[str, Columns], name: str) -> np.ndarray | None:
    """(M, E) target NLL of a split up to now, as the trace has it; None if it is not in this evaluation."""
    if name not in splits:
        return None
    columns = splits[name]
    ids = columns["example"]
    now_E = np.float64(np.float32(columns.get("target_nll", np.full(len(ids), np.nan))))
    nll_ME = np.full((len(past.steps), len(ids)), np.nan)
    if name in past.splits:
        nll_ME = past.splits[name].nll[:, np.searchsorted(past.splits[name].example, ids)]
    return np.concatenate([nll_ME, now_E[None]])
