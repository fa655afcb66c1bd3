"""Figure of the updates of a run that were split by source: how each source moved each type of response."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from premem_jax.report import drawing
from premem_jax.report.drawing import INK, MEMORIZED, PREMEM, TEST, TRAIN
from premem_jax.running import sealed

CAPTION = (
    "First-order effect of single updates on log π of responses to the same probed prompts, split by source: the "
    "gradients of the batch's chosen and rejected responses, old momentum, and weight decay. Top: the mean over the "
    "split updates of each phase, as bars with what really happened as a point, and as a map by type and source, in "
    "which each column is divided by its largest value. Below: each split update. The released notebook of Ren & "
    "Sutherland plots another thing: the change between two evaluations, divided by norms of A and G and smoothed."
)
SOURCES = {"chosen": PREMEM, "rejected": MEMORIZED, "momentum": TEST, "decay": TRAIN}


def documents(workdir: Path) -> list[dict]:
    """The split updates of the run in `workdir`, in the order of their steps; damaged files are left out."""
    read = lambda path: sealed.unless_damaged(sealed.read_json, path, workdir, "the report goes without it")
    return [found for path in sorted((workdir / "influence").glob("step-*.json")) if (found := read(path))]


def means(documents: Sequence[Mapping], phase: str) -> dict[str, dict[str, float]]:
    """type → source (and `actual`) → the mean over prompts and over the split updates of a phase, in nats."""
    mine = [document["types"] for document in documents if document["phase"] == phase]
    found: dict[str, dict[str, float]] = {}
    for kind in mine[0] if mine else ():
        names = [name for name in (*SOURCES, "actual") if name in mine[0][kind]]
        found[kind] = {name: float(np.mean([np.mean(types[kind][name]) for types in mine])) for name in names}
    return found


def influence_figure(documents: Sequence[Mapping], path: str | os.PathLike, *, narrow: bool = False) -> Figure:
    """Writes a PNG of the documents in `influence/`, in the order of their steps."""
    phases = list(dict.fromkeys(document["phase"] for document in documents))
    kinds = list(documents[0]["types"])
    columns = 1 if narrow else max(2 * len(phases), 2)
    tall = 2 * len(phases) // columns  # rows of bars and maps
    figure = drawing.blank((4.6 * columns / 2 + 3, 1.2 + 3 * tall + 1.5 * len(kinds)), narrow)
    grid = figure.add_gridspec(tall + len(kinds), columns, height_ratios=(*[3] * tall, *[1.1] * len(kinds)))
    for i, phase in enumerate(phases):
        found = means(documents, phase)
        _bars(figure.add_subplot(grid[divmod(2 * i, columns)]), found, phase)
        _map(figure.add_subplot(grid[divmod(2 * i + 1, columns)]), found)
    first = None
    for row, kind in enumerate(kinds, start=tall):
        axes = figure.add_subplot(grid[row, :], sharex=first)
        first = first or axes
        _updates(axes, documents, kind)
    axes.set_xlabel("updates")
    figure.legend(
        *first.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=2 if narrow else 5,
        loc="outside lower center",
    )
    return drawing.save(figure, path)


def _bars(axes: Axes, found: Mapping[str, Mapping[str, float]], phase: str) -> None:
    drawing.style(axes, f"{drawing.label(phase)}: nats an update")
    places, width = np.arange(len(found)), 0.8 / len(SOURCES)
    for i, (source, color) in enumerate(SOURCES.items()):
        values = [found[kind].get(source, 0.0) for kind in found]
        axes.bar(places + (i - 1.5) * width, values, width, color=color, label=source)
    axes.plot(places, [found[kind]["actual"] for kind in found], "o", color=INK, markersize=4, label="actual")
    axes.set_xticks(places, [drawing.label(kind) for kind in found], rotation=30, ha="right")
    axes.axhline(0, color=INK, linewidth=0.8)


def _map(axes: Axes, found: Mapping[str, Mapping[str, float]]) -> None:
    names = [name for name in SOURCES if any(name in row for row in found.values())]
    table = np.array([[row.get(name, 0.0) for name in names] for row in found.values()])
    shares = table / np.maximum(np.abs(table).max(axis=0), 1e-30)
    axes.imshow(shares, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(range(len(found)), [drawing.label(kind) for kind in found], fontsize=9)
    for (row, column), value in np.ndenumerate(table):
        color = "white" if abs(shares[row, column]) > 0.6 else INK
        axes.text(column, row, f"{value:.1g}", ha="center", va="center", fontsize=8, color=color)


def _updates(axes: Axes, documents: Sequence[Mapping], kind: str) -> None:
    drawing.style(axes)
    steps = [document["step"] for document in documents]
    for name, color in (SOURCES | {"actual": INK}).items():
        values = [np.mean(document["types"][kind].get(name, np.nan)) for document in documents]
        style, marker = ("", "o") if name == "actual" else ("-", ".")
        axes.plot(steps, values, linestyle=style, marker=marker, color=color, label=name, linewidth=1.2)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_ylabel(drawing.label(kind), rotation=0, ha="right", fontsize=9)
