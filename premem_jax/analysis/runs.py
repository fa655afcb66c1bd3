"""The input of a study of many runs: a trace with its test accuracy, from any trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from premem_jax.analysis.trace import SplitTrace, Trace


@dataclass(frozen=True)
class Run:
    """One finetuning run over M evaluations.

    The trace's split `train` holds the training examples; `heldout`, if present, other examples of the same kind.
    """

    name: str
    task: str  # runs of one task, data and model, are studied together
    trace: Trace
    test_accuracy: np.ndarray  # (M,) float64, mean over the test questions; NaN where not measured
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)  # (M,) each: predictors measured while training
    heldout: str = "heldout"  # the split whose target NLL gives the threshold
    published: float | None = None  # the threshold on perplexity that the run's authors used
    one_data_set: bool = False  # whether ids of `train` and `heldout` are rows of one data set
    notes: tuple[str, ...] = ()  # what was odd about the files, and what was done about it

    @property
    def train(self) -> SplitTrace:
        return self.trace.split("train")

    @property
    def heldout_nll(self) -> np.ndarray | None:
        """(M, E) NLL of the held-out examples, nats per token; None if there are none."""
        return self.trace.split(self.heldout).nll if self.heldout in self.trace.splits else None
