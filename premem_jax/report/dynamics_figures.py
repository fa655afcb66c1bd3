"""Figures of learning dynamics: likelihoods of all response types, and the probability mass."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
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
LABELS = ("log π(y|x), nats", "change of it per\ntoken since dotted", "share", "log-ratio margin, nats")
MORE = ("#2f8f5b", "#b58900", "#5b7fb5", "#a0522d", "#6b8e23", "#c06090", "#708090")


def responses_figure(
    arms: Mapping[str, Trace], since: Mapping[str, int], path: str | os.PathLike, *, narrow: bool = False
) -> Figure:
    """Writes a PNG with, for each arm, log π by response type against epochs, its change per token, and squeezing.

    Two arms are side by side, or none in a `narrow` figure; the measures of all have the same scales.
    `since`: the first step of preference training, marked by a line.
    """
    columns = 1 if narrow else min(2, len(arms))
    blocks = -(-len(arms) // columns)
    figure = drawing.blank((5.6 * max(columns, 1.6), 9.9 * blocks + 0.6), narrow)
    grid = figure.add_gridspec(len(LABELS) * blocks, columns, height_ratios=(3, 2, 1.6, 1.2) * blocks)
    alike: list[Axes | None] = [None] * len(LABELS)
    for at, (name, trace) in enumerate(arms.items()):
        block, column = divmod(at, columns)
        axes: list[Axes] = []
        for row in range(len(LABELS)):
            place = grid[len(LABELS) * block + row, column]
            axes.append(figure.add_subplot(place, sharex=axes[0] if axes else None, sharey=alike[row]))
        alike = axes
        _arm(axes, trace, since[name])
        drawing.style(axes[0], drawing.label(name))
        for each, label in zip(axes, LABELS, strict=True):
            each.tick_params(labelbottom=each is axes[-1], labelleft=column == 0)
            each.set_ylabel(label if column == 0 else "")
    named: dict[str, Artist] = {}
    for each in (axes[0], axes[2]):
        named |= dict(zip(*reversed(each.get_legend_handles_labels()), strict=True))
    figure.legend(
        named.values(), named.keys(), frameon=False, fontsize=9, loc="outside upper left", ncols=2 if narrow else 4
    )
    return drawing.save(figure, path)


def _arm(axes: Sequence[Axes], trace: Trace, since: int) -> None:
    """One arm in axes from top to bottom."""
    _curves(axes[0], trace, response_curves.curves_by_type(trace))
    per_token = response_curves.curves_by_type(trace, per_token=True)
    start = _place(trace, since)
    _curves(axes[1], trace, {kind: values - values[start] for kind, values in per_token.items()})
    _squeezing(axes[2], trace)
    _margins(axes[3], trace, since)
    for each in axes:
        each.axvline(trace.epochs[start], color=INK, linewidth=0.8, linestyle=":")
    axes[3].set_xlabel("epochs (dotted: preference training begins)")


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
