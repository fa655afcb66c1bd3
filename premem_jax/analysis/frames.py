"""Traces as pandas data frames. pandas is imported on use: `pip install 'premem_jax[pandas]'`."""

from typing import TYPE_CHECKING

import numpy as np

from premem_jax.analysis import premem
from premem_jax.analysis.curves import run_curves
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace
from premem_jax.errors import UserError

if TYPE_CHECKING:
    import pandas


def examples(trace: Trace, threshold: Threshold | None = None, train: str = "train") -> "pandas.DataFrame":
    """One row per evaluation, split and example that was measured there.

    Columns: `step`, `epoch`, `split`, `example`, `target_nll` (nats per token), `target_tokens`, `samples`, `correct`,
    `unparsed`, `accuracy`, and with a threshold `memorized` and, of split `train`, `pre_memorization_accuracy`. NaN
    where not measured.

    Raises:
      UserError: pandas is missing.
    """
    pd = _pandas()
    parts = []
    for name, split in trace.splits.items():
        M, E = split.nll.shape
        metric_ME = np.full((M, E), np.nan)
        if threshold is not None and name == train:
            metric_ME = premem.pre_memorization_accuracy(split.accuracy_or_skipped, split.nll, threshold.perplexity)
        columns = {
            "step": np.repeat(trace.steps, E),
            "epoch": np.repeat(trace.epochs, E),
            "split": name,
            "example": np.tile(split.example, M),
            "target_nll": split.nll.ravel(),
            "target_tokens": np.tile(split.tokens, M),
            "samples": split.samples.ravel(),
            "correct": split.correct.ravel(),
            "unparsed": split.unparsed.ravel(),
            "accuracy": split.accuracy.ravel(),
        }
        if threshold is not None:
            columns |= {"memorized": (split.nll < threshold.nll(M)[:, None]).ravel()}
            columns |= {"pre_memorization_accuracy": metric_ME.ravel()}
        frame = pd.DataFrame(columns)
        parts.append(frame[frame["target_nll"].notna() | (frame["samples"] > 0)])
    return pd.concat(parts, ignore_index=True)


def curves(trace: Trace, threshold: Threshold | None = None) -> "pandas.DataFrame":
    """One row per evaluation: the means of `run_curves`, and the measures of the whole run.

    Raises:
      UserError: pandas is missing.
    """
    return _pandas().DataFrame({**run_curves(trace, threshold), **trace.measures})


def _pandas():
    try:
        import pandas
    except ImportError as error:
        raise UserError("data frames need pandas; pip install 'premem_jax[pandas]'") from error
    return pandas
