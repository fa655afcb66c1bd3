"""Figures of learning dynamics: likelihoods of all response types, and the probability mass."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from premem_jax.analysis import response_curves
from premem_jax.analysis.trace import Trace
from premem_jax.report import drawing
from premem_jax.report.drawing import INK, MEMORIZED, PREMEM, TEST, TRAIN

CAPTION = (
    "Means over the probed prompts. Rising or falling since the dotted line says what preference training did to "
    "responses that it never saw. Squeezing shows where all types fall while the argmax on the prefix of the chosen "
    "response rises."
)

COLORS = {
    "chosen": PREMEM,
    "rejected": MEMORIZED,
    "other": TEST,
    "permuted": "#8e6bbf",
    "random": TRAIN,
    response_curves.GREEDY: INK,
}
MORE = ("#2f8f5b", "#b58900", "#5b7fb5", "#a0522d", "#6b8e23", "#c06090", "#708090")


def responses_figure(arms: Mapping[str, Trace], since: Mapping[str, int], path: str | os.PathLike) -> None:
    """Writes a PNG with, for each arm, log π by response type against epochs, its change per token, and squeezing.

    `since`: the first step of preference training, marked by a line.
    """
    figure = Figure(figsize=(5.6 * max(len(arms), 1.6), 10.5), layout="constrained")
    rows = figure.subplots(4, len(arms), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 2, 1.6, 1.2))
    for column, (name, trace) in enumerate(arms.items()):
        axes = rows[:, column]
        _curves(axes[0], trace, response_curves.curves_by_type(trace))
        per_token = response_curves.curves_by_type(trace, per_token=True)
        start = _place(trace, since[name])
        _curves(axes[1], trace, {kind: values - values[start] for kind, values in per_token.items()})
        _squeezing(axes[2], trace)
        _margins(axes[3], trace, since[name])
        for each in axes:
            each.axvline(trace.epochs[start], color=INK, linewidth=0.8, linestyle=":")
        drawing.style(axes[0], drawing.label(name))
        axes[3].set_xlabel("epochs (dotted: preference training begins)")
    for axes, label in zip(
        rows[:, 0],
        ("log π(y|x), nats", "change of it per\ntoken since dotted", "share", "log-ratio margin, nats"),
        strict=True,
    ):
        axes.set_ylabel(label)
    rows[0, -1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if rows[2, -1].get_legend_handles_labels()[0]:
        rows[2, -1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawing.save(figure, path)


def _place(trace: Trace, step: int) -> int:
    """Index of the evaluation at `step`, or of the last one before it."""
    return int(max(np.searchsorted(trace.steps, step, side="right") - 1, 0))


def _curves(axes: Axes, trace: Trace, curves: Mapping[str, np.ndarray]) -> None:
    drawing.style(axes)
    others = [name for name in curves if name not in COLORS]
    colors = COLORS | {name: MORE[i % len(MORE)] for i, name in enumerate(others)}
    for name in sorted(curves, key=lambda name: -np.nan_to_num(curves[name][-1])):
        known = np.isfinite(curves[name])
        style = "--" if name == response_curves.GREEDY else "-"
        label = f"{name} (argmax on y⁺)" if name == response_curves.GREEDY else drawing.label(name)
        axes.plot(trace.epochs[known], curves[name][known], style, marker=".", color=colors[name], label=label)


def _squeezing(axes: Axes, trace: Trace) -> None:
    drawing.style(axes)
    found = response_curves.squeezing(trace)
    for name, color in (("top_mass", INK), ("falling", MEMORIZED), ("entropy", TRAIN)):
        if name in found:
            known, most = np.isfinite(found[name]), np.nanmax(found[name]) if name == "entropy" else 1
            label = response_curves.MEASURES[name] + (f" / {most:.2f}" if name == "entropy" else "")
            axes.plot(trace.epochs[known], found[name][known] / (most or 1), marker=".", color=color, label=label)
    if (repeated := response_curves.greedy_responses(trace).get("repeated_4grams")) is not None:
        known = np.isfinite(repeated)
        label = f"{response_curves.SAID['repeated_4grams']} (greedy)"
        axes.plot(trace.epochs[known], repeated[known], marker=".", color=TEST, label=label)
    axes.set_ylim(0, 1.03)


def _margins(axes: Axes, trace: Trace, since: int) -> None:
    drawing.style(axes)
    margin = response_curves.margins(trace, since)["margin"]
    known = np.isfinite(margin)
    axes.plot(trace.epochs[known], margin[known], marker=".", color=PREMEM)
