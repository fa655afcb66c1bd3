"""Settled examples need no samples: their pre-memorization accuracy is 0 whatever the responses."""

import numpy as np
from etils.epath import Path

from premem_jax.analysis import premem, trace
from premem_jax.evaluators.base import Evaluator


class Unsettled:
    """Selects the rows of an evaluator with `skip_settled` from the trace so far; for other evaluators, all rows."""

    def __init__(self, folder: Path, perplexity: float | None, once=lambda function: function()):
        """`folder`: the trace; `perplexity`: the memorization threshold, if it is known before the run.

        `once` calls a function in one process and broadcasts the result.
        """
        self._folder, self._perplexity, self._once = folder, perplexity, once

    def __call__(self, evaluator: Evaluator, columns: dict[str, np.ndarray], step: int, member: str = "") -> np.ndarray:
        """(E,) bool, given the split's columns at `step`; all rows if these lack the likelihood."""
        if not evaluator.skip_settled or self._perplexity is None or "target_nll" not in columns:
            return np.ones(len(evaluator.split.data), bool)
        return ~np.array(self._once(lambda: self._settled(evaluator.split, columns, step, member).tolist()), bool)

    def _settled(self, split, columns: dict[str, np.ndarray], step: int, member: str) -> np.ndarray:
        nll_ME, accuracy_ME = columns["target_nll"][None], np.full((1, len(split.data)), np.nan)
        if any(earlier < step for earlier in trace.evaluation_steps(self._folder)):
            past = trace.read_trace(self._folder, up_to=step - 1, member=member).splits.get(split.name)
            if past is not None:
                at = np.searchsorted(past.example, split.data.ids)
                nll_ME = np.concatenate([past.nll[:, at], nll_ME])
                accuracy_ME = np.concatenate([past.accuracy_or_skipped[:, at], accuracy_ME])
        return premem.settled(accuracy_ME, nll_ME, self._perplexity)[-1]
