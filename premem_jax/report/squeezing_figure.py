"""The picture of the squeezing toy: probabilities of all classes before and after one step."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from premem_jax.analysis.squeezing_theorem import Panel
from premem_jax.report import drawing
from premem_jax.report.drawing import MEMORIZED, PREMEM, TRAIN


def panels_figure(panels: Sequence[Panel], path: str | os.PathLike) -> None:
    """Writes a PNG with one row per panel; probabilities are on a logarithmic axis from 1e-14."""
    figure = Figure(figsize=(9, 2.1 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, sharex=True), panels, strict=True):
        classes = np.arange(len(panel.before))
        axes.bar(classes, panel.before, width=0.8, color=TRAIN, alpha=0.45, label="before")
        axes.plot(classes, panel.after, "_", color=PREMEM, markersize=7, markeredgewidth=2, label="after")
        axes.axvline(panel.label, color=MEMORIZED, linewidth=1, linestyle=":", label="label of the step")
        axes.set_yscale("log")
        axes.set_ylim(1e-14, 2)
        down, others = panel.down
        drawing.style(axes, f"{panel.name}; {down} of {others} other classes fall")
        axes.set_ylabel("probability")
    axes.set_xlabel("class")
    axes.legend(frameon=False, ncols=3, fontsize=9, loc="lower left")
    drawing.save(figure, path)
