"""The figures of a set of runs: predictors against test accuracy, and the threshold.

Each is returned, and with a path written as a PNG.
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from premem_jax.analysis import predictors
from premem_jax.report import drawing
from premem_jax.report.drawing import FAINT, INK, MEMORIZED, PREMEM, TEST, TRAIN

MOST_NAMED = 16  # more runs than that have no legend


def scatter_figure(
    runs: Sequence[Mapping],
    table: Mapping[str, Mapping],
    path: str | os.PathLike | None = None,
    *,
    narrow: bool = False,
) -> Figure:
    """Pre-memorization accuracy, and beside it train accuracy, against test accuracy, with y = x.

    `runs` and `table` are the results of `analysis.study.run_table` and `predictor_table`.
    """
    figure = drawing.blank((11.5, 9.4 if narrow else 4.7), narrow)
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    colors = _run_colors(len(runs))
    labels = [drawing.label(name) for name in short_names([run["run"] for run in runs])]
    named: list[tuple[str, np.ndarray]] = []
    for axes, name in zip(panels, ("pre_memorization_accuracy", "train_accuracy"), strict=True):
        x, y, run = _points(runs, name)
        last = np.append(run[1:] != run[:-1], True)[: len(run)]
        paths = [np.stack([x[run == i], y[run == i]], axis=1) for i in np.unique(run)]
        axes.add_collection(LineCollection(paths, colors=colors[np.unique(run)], linewidth=1, alpha=0.6, zorder=2))
        axes.scatter(x[~last], y[~last], s=22, color="white", edgecolor=colors[run[~last]], linewidth=1.3, zorder=3)
        axes.scatter(x[last], y[last], s=46, color=colors[run[last]], edgecolor="white", linewidth=0.7, zorder=4)
        limit = max([0.0, *x, *y])
        named = named or [(labels[i], colors[i]) for i in np.unique(run)]
        top = min(1.03, 1.08 * limit)
        axes.plot([0, top], [0, top], "--", color=INK, linewidth=1, zorder=1)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal", ylabel="test accuracy")
        axes.set_xlabel(f"{predictors.of(name).title} (train)" if name.startswith("pre") else "train accuracy")
        row = table.get(name)
        drawing.style(axes, f"{predictors.of(name).title[0].upper()}{predictors.of(name).title[1:]}")
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        if row:
            text = (
                f"R² (y = x)  {_r2(row['r2_identity'])}\nR² (line)    {_r2(row['r2_linear'])}\n{row['n_points']} points"
            )
            axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=10.5, color=INK, linespacing=1.5)
    if len(runs) <= MOST_NAMED:
        dot = dict(linestyle="none", marker="o", markersize=6.5, markeredgecolor="white", markeredgewidth=0.7)
        handles = [Line2D([], [], color=color, label=label, **dot) for label, color in named]
        legend = figure.legend(
            handles=handles, loc="outside lower left" if narrow else "outside right center", frameon=False, fontsize=9
        )
        legend.set_title("run (filled: its last evaluation)", prop={"size": 9})
    return drawing.save(figure, path)


def predictors_figure(
    table: Mapping[str, Mapping], path: str | os.PathLike | None = None, *, narrow: bool = False
) -> Figure:
    """R² of every predictor with its interval over runs, at all evaluations and at the last ones."""
    names = sorted(table, key=lambda name: _sort_key(table[name]))
    figure = drawing.blank((11, 1.5 + 0.42 * len(names) * (2 if narrow else 1)), narrow)
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, sharey=True)
    for axes, which in zip(panels, ("all", "final"), strict=True):
        for at, name in enumerate(names):
            row = table[name] if which == "all" else table[name]["final"]
            _interval(axes, at + 0.14, row, "r2_identity", PREMEM, "o")
            _interval(axes, at - 0.14, row, "r2_linear", TEST, "D")
        drawing.style(axes, "All evaluations" if which == "all" else "Last evaluation of each run")
        axes.set(xlim=(-0.32, 1.03), ylim=(-0.6, len(names) - 0.4), xlabel="R² with test accuracy")
        titles = [drawing.label(predictors.of(name).title) for name in names]
        axes.set_yticks(range(len(names)), [textwrap.fill(title, 26) if narrow else title for title in titles])
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        axes.grid(axis="y", visible=False)
    panels[0].plot([], [], "o-", color=PREMEM, label="against y = x")
    panels[0].plot([], [], "D-", color=TEST, markerfacecolor="white", label="best line")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=10,
        title="lines: 95 % intervals over runs; an arrow: below the scale",
        title_fontsize=9,
    )
    return drawing.save(figure, path)


def sensitivity_figure(
    curve: Mapping[str, Sequence[float]],
    rules: Sequence[Mapping],
    errors: Sequence[Mapping],
    path: str | os.PathLike | None = None,
    quantile: float = 0.01,
    *,
    narrow: bool = False,
) -> Figure:
    """R² against the threshold, with the thresholds of the rules and the error of the held-out one.

    Args:
      curve: nll (mean nats per token), r2_identity and r2_linear, one value per threshold.
      rules: the result of `analysis.study.threshold_table`. Marked are the published or given rule, the held-out
        quantile and the tuned one, each with its median and range over runs.
      errors: the result of `analysis.study.heldout_error`.
      path: path of the PNG.
      quantile: the quantile of the held-out rule to mark.
    """
    figure = drawing.blank((8, 5.8), narrow)
    axes = figure.subplots()
    nll = np.array(curve["nll"])
    axes.plot(nll, curve["r2_linear"], color=TRAIN, linewidth=1.6, label="best line")
    axes.plot(nll, curve["r2_identity"], color=PREMEM, linewidth=2.4, label="against y = x")
    for row, alpha in zip(errors, np.linspace(0.06, 0.16, max(len(errors), 1)), strict=False):
        label = f"held-out threshold, 95 % of draws of {row['examples']:,}"
        low, high = (max(value, nll[0]) for value in row["nll_interval"])
        axes.axvspan(low, high, color=MEMORIZED, alpha=alpha, linewidth=0, label=label)
    marks = {"published": ("D", INK, 13, "published, tuned on test accuracy"), "given": ("D", INK, 13, "given")}
    marks["tuned"] = ("o", TEST, 9, "tuned on test accuracy")
    marks["heldout_quantile"] = ("o", MEMORIZED, 5, f"{quantile:.3g} quantile of held-out NLL")
    for row in rules:
        if row["rule"] in marks and row["quantile"] in (None, quantile):
            marker, color, size, label = marks[row["rule"]]
            style = dict(markersize=size, color=color, markerfacecolor="none", markeredgewidth=1.8, linestyle="none")
            low, high, r2 = row["nll_lowest"], row["nll_highest"], row["r2_identity"]
            label += f": {low:.4f}" + (f" … {high:.4f}" if high > low else "") + f", R² {r2:.4f}"
            axes.plot([low, high], [r2, r2], "-", color=color, linewidth=1.8, zorder=5)
            label = textwrap.fill(label, 44) if narrow else label
            axes.plot([math.log(row["threshold"])], [r2], marker, label=label, zorder=5, **style)
    r2 = np.array(curve["r2_identity"], float)
    best = nll[np.nanargmax(r2)]
    span = (max(best / 6, nll[0]), min(best * 4, nll[-1]))
    axes.set_xscale("log")
    axes.set(xlim=span, ylim=(0, 1.02), xlabel="threshold on the target NLL (mean nats per token)", ylabel="R²")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    drawing.style(axes)
    perplexity = axes.secondary_xaxis("top", functions=(np.exp, lambda p: np.log(np.maximum(p, 1 + 1e-12))))
    perplexity.set_xlabel("threshold on perplexity", color=INK)
    ticks = [p for p in (1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5) if span[0] <= math.log(p) <= span[1]]
    perplexity.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    perplexity.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    perplexity.xaxis.set_minor_locator(ticker.NullLocator())
    perplexity.tick_params(colors=INK, labelsize=10, length=3)
    perplexity.spines["top"].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside lower left", ncols=1 if narrow else 2, markerscale=0.7)
    return drawing.save(figure, path)


def likelihood_figure(
    heldout_E: np.ndarray | None,
    train: Mapping[str, np.ndarray],
    nll: float,
    title: str,
    path: str | os.PathLike | None = None,
    *,
    narrow: bool = False,
) -> Figure:
    """The distribution of target NLL, with the threshold.

    Args:
      heldout_E: (E,) mean nats per token of held-out examples, or None.
      train: label to (E,) of training examples, in drawing order.
      nll: the threshold.
      title: title of the figure.
      path: path of the PNG.
    """
    floor = 1e-5  # a target that is certain in float32 has an NLL of 0, which a logarithmic axis cannot show
    everything = [np.maximum(x[np.isfinite(x)], floor) for x in (*train.values(), heldout_E) if x is not None]
    joined = np.concatenate([*everything, [nll]])
    bins = np.geomspace(joined.min() * 0.9, joined.max() * 1.1, 70)
    figure = drawing.blank((8, 4.2), narrow)
    axes = figure.subplots()
    shades = colormaps["Blues"](np.linspace(0.4, 0.9, len(train)))
    for (label, _), values, shade in zip(train.items(), everything, shades, strict=False):
        weights = np.full(len(values), 1 / len(values))
        below = np.mean(values < nll)
        text = f"{label}: {below:.1%} memorized"
        axes.hist(values, bins, weights=weights, histtype="step", color=shade, linewidth=2, label=text)
    if heldout_E is not None:
        values = everything[-1]
        text = f"held out: {np.mean(values < nll):.1%} below"
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, color=TEST, alpha=0.35, label=text)
    axes.axvline(nll, color=MEMORIZED, linewidth=1.8, label=f"threshold {nll:.4f} (perplexity {math.exp(nll):.4f})")
    axes.axvspan(bins[0], nll, color=MEMORIZED, alpha=0.06, linewidth=0)
    axes.set_xscale("log")
    axes.set(xlim=(bins[0], bins[-1]), xlabel="target NLL (mean nats per token)", ylabel="share of the examples")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    drawing.style(axes, title)
    drawing.legend(axes, frameon=True, framealpha=0.9, edgecolor="none", loc="upper left")
    return drawing.save(figure, path)


def short_names(names: Sequence[str]) -> list[str]:
    """The names without common leading and trailing parts; underscores and slashes separate parts."""
    if len(names) < 2:
        return list(names)
    parts = [name.replace("/", "_").split("_") for name in names]
    first = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), 0)
    backwards = [part[::-1] for part in parts]
    last = next((i for i, column in enumerate(zip(*backwards, strict=False)) if len(set(column)) > 1), 0)
    short = [" ".join(part[first : len(part) - last]) for part in parts]
    return short if all(short) and len(set(short)) == len(set(names)) else list(names)


def _points(runs: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictor, test accuracy and number of the run of every evaluation that has both."""
    x, y = (np.concatenate([np.array(run[key], float) for run in runs]) for key in (name, "test_accuracy"))
    run = np.repeat(np.arange(len(runs)), [len(run["test_accuracy"]) for run in runs])
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known], run[known]


def _run_colors(count: int) -> np.ndarray:
    if count <= 10:
        return colormaps["tab10"](np.arange(count))
    return colormaps["tab20"](np.arange(count)) if count <= 20 else colormaps["turbo"](np.linspace(0.05, 0.95, count))


def _interval(axes: Axes, height: float, row: Mapping, name: str, color: str, marker: str) -> None:
    value = row[name]
    if value is None or not math.isfinite(value):
        return
    low, high = row["interval"][name]
    left = -0.3
    if math.isfinite(low):
        axes.plot([max(low, left), max(high, left)], [height, height], "-", color=color, linewidth=1.6, alpha=0.7)
    if value < left:
        axes.annotate(
            f"{value:.2f}",
            (left, height),
            xytext=(16, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
            arrowprops=dict(arrowstyle="->", color=color, shrinkA=0, shrinkB=0),
        )
        return
    face = color if marker == "o" else "white"
    axes.plot([value], [height], marker, color=color, markerfacecolor=face, markersize=6, markeredgewidth=1.4)


def _sort_key(row: Mapping) -> tuple:
    """Sorts accuracies to the top, by R² of y = x; the rows of a figure run upwards."""
    value = row["r2_identity"]
    linear = row["r2_linear"] if math.isfinite(row["r2_linear"]) else -1.0
    return (value is not None, value if value is not None and math.isfinite(value) else linear)


def _r2(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
