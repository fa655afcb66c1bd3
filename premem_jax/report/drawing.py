"""The look of all figures.

Drawn on `Figure` objects without pyplot, so there is no global state and no display is needed.
"""

import base64
import io
import os
import sys

import matplotlib
from etils.epath import Path
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from premem_jax.running import atomic

if "matplotlib.pyplot" not in sys.modules:  # not in a notebook: what a matplotlibrc says, as that LaTeX sets the text
    matplotlib.rcdefaults()

TRAIN, PREMEM, TEST, MEMORIZED = "#8a94a3", "#0b6e99", "#d1622b", "#c2185b"
INK, FAINT, UNKNOWN = "#22272e", "#d7dce2", "#eceff2"
DPI = 150
MOST_SHOWN = 60  # characters of a name


def style(axes: Axes, title: str | None = None) -> None:
    """Gives `axes` the look of all figures, and a title."""
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def save(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """Writes `figure` as a PNG, if there is a path, and returns it; a notebook shows it."""
    FigureCanvasAgg(figure)
    if path is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        atomic.write_bytes(path, buffer.getvalue())
    return figure


def as_base64(path: Path) -> str:
    """The bytes of a file as base64 text."""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def shown(name: str) -> str:
    """A foreign name for display: on one line, a long one without its middle."""
    half = MOST_SHOWN // 2
    cut = name if len(name) <= MOST_SHOWN else f"{name[:half]}…{name[1 - half :]}"
    return " ".join("".join(c if c.isprintable() else " " for c in cut).split())


def label(name: str) -> str:
    """A name as text in a figure, escaped: a dollar would start a formula, a leading underscore would hide it."""
    text = shown(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
