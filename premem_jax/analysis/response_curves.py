"""What becomes of every type of response over a run: curves from a trace that has probes."""

import numpy as np

from premem_jax.analysis import premem
from premem_jax.analysis.trace import SplitTrace, Trace

GREEDY = "greedy path"
MEASURES = {
    "entropy": "entropy (nats)",
    "top_mass": "mass of the likeliest token",
    "falling": "share of tokens that fell",
}
SAID = {"greedy_length": "tokens of a greedy response", "repeated_4grams": "4-grams that repeat"}


def response_types(trace: Trace, of: str = "train") -> dict[str, SplitTrace]:
    """The splits of the trace that are responses to the prompts of the split `of`, by type."""
    probed = {name.removeprefix(f"{of} "): split for name, split in trace.splits.items() if name.startswith(f"{of} ")}
    return {name: split for name, split in probed.items() if np.isfinite(split.nll).any()}


def log_likelihood(split: SplitTrace) -> np.ndarray:
    """(M, E) nats: log π(y|x) of each response, NaN where it was not measured."""
    return -split.nll * split.tokens


def curves_by_type(trace: Trace, of: str = "train", per_token: bool = False) -> dict[str, np.ndarray]:
    """Mean over prompts of log π(y|x) of each response type (M,), or of its mean per token; NaN where not measured."""
    value = (lambda split: -split.nll) if per_token else log_likelihood
    return {name: premem.measured_mean(value(split)) for name, split in response_types(trace, of).items()}


def margins(trace: Trace, since: int, of: str = "train") -> dict[str, np.ndarray]:
    """`margin` (M,), the mean change of log π(y⁺) − log π(y⁻) since step `since`, in nats, and `reward_accuracy` (M,).

    The latter is the share of pairs whose change is positive. NaN where the responses were not measured at both steps.
    """
    types, unknown = response_types(trace, of), np.full(len(trace.steps), np.nan)
    start = np.flatnonzero(trace.steps == since)
    if not ({"chosen", "rejected"} <= types.keys() and len(start)):
        return {"margin": unknown, "reward_accuracy": unknown}
    gap_ME = log_likelihood(types["chosen"]) - log_likelihood(types["rejected"])
    beyond_ME = gap_ME - gap_ME[start[0]]
    wins_ME = np.where(np.isfinite(beyond_ME), beyond_ME > 0, np.nan)
    return {"margin": premem.measured_mean(beyond_ME), "reward_accuracy": premem.measured_mean(wins_ME)}


def squeezing(trace: Trace, of: str = "train") -> dict[str, np.ndarray]:
    """The measures of the evaluator `squeezing` that the trace has, each (M,)."""
    found = {name: trace.measures.get(f"{of}_{name}") for name in MEASURES}
    return {name: values for name, values in found.items() if values is not None}


def greedy_responses(trace: Trace, of: str = "test") -> dict[str, np.ndarray]:
    """The measures of the evaluator `greedy_responses` that the trace has, each (M,)."""
    found = {name: trace.measures.get(f"{of}_{name}") for name in SAID}
    return {name: values for name, values in found.items() if values is not None}


def summary(trace: Trace, since: int) -> dict[str, float]:
    """Numbers of a run whose preference training began at step `since`: each curve's change from there to the end."""
    curves = {"greedy" if name == GREEDY else name: values for name, values in curves_by_type(trace).items()}
    start = np.flatnonzero(trace.steps == since)
    found = {f"change_{name}": float(values[-1] - values[start[0]]) for name, values in curves.items() if len(start)}
    found |= {name: float(values[-1]) for name, values in (margins(trace, since) | greedy_responses(trace)).items()}
    return {name.replace(" ", "_"): round(value, 4) for name, value in found.items() if np.isfinite(value)}
