"""The look of all figures.

Drawn on `Figure` objects without pyplot, so there is no global state and no display is needed.
"""

import base64
import io
import os
import sys
import textwrap
from collections.abc import Callable

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
NARROW = 4.2  # inches: 390 pixels of a phone show texts of 9 points as 9 pixels or more


def style(axes: Axes, title: str | None = None) -> None:
    """Gives `axes` the look of all figures, and a title."""
    if title:
        title = textwrap.fill(title, 34) if axes.figure.get_figwidth() <= NARROW else title
        axes.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def blank(size: tuple[float, float], narrow: bool = False) -> Figure:
    """An empty figure of this size in inches; with `narrow`, no wider than a phone shows."""
    return Figure(figsize=(min(size[0], NARROW), size[1]) if narrow else size, layout="constrained")


def legend(axes: Axes, **options) -> None:
    """A legend inside `axes`; above them in a narrow figure, where it would hide what is drawn."""
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each label once
    options = dict(frameon=False, fontsize=9) | options
    if axes.figure.get_figwidth() > NARROW:
        axes.legend(named.values(), named.keys(), **options)
    else:
        axes.figure.legend(named.values(), named.keys(), **options | dict(loc="outside upper left", ncols=1))


def save(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """Writes `figure` as a PNG, if there is a path, and returns it; a notebook shows it.

    Labels below narrow axes are broken into short lines.
    """
    FigureCanvasAgg(figure)
    for axes in figure.axes if figure.get_figwidth() <= NARROW else ():
        axes.set_xlabel(textwrap.fill(axes.get_xlabel(), 44))
    if path is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        atomic.write_bytes(path, buffer.getvalue())
    return figure


def both(draw: Callable[..., Figure], path: Path, *args, **options) -> None:
    """Draws a figure at `path`, and for phones beside it, where `picture` finds it."""
    draw(*args, path=path, **options)
    draw(*args, path=_narrow(path), narrow=True, **options)


def picture(path: Path, caption: str) -> dict[str, str]:
    """A figure that `both` drew, as the templates take it."""
    return {"caption": caption, "data": as_base64(path), "narrow": as_base64(_narrow(path))}


def _narrow(path: Path) -> Path:
    return path.parent / path.name.replace(".png", "_narrow.png")


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
