"""The two figures of a run: its curves, and its examples. Each is returned, and with a path written as a PNG."""

import os

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from premem_jax.analysis import premem
from premem_jax.analysis.curves import HALF
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import SplitTrace, Trace
from premem_jax.errors import UserError
from premem_jax.report import drawing
from premem_jax.report.drawing import INK, MEMORIZED, PREMEM, TEST, TRAIN, UNKNOWN


def curves_figure(
    curves: dict[str, np.ndarray], path: str | os.PathLike | None = None, *, narrow: bool = False
) -> Figure:
    """Train accuracy, the shrunk estimate and test accuracy against epochs, above the share memorized.

    `curves` is the result of `analysis.curves.run_curves`; NaNs are left out of the lines. Bands are 95 % intervals.
    `narrow` is for phones.
    """
    figure = Figure(figsize=(4.2, 5.4) if narrow else (8, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    lines = (
        ("train_accuracy", "train accuracy", TRAIN, "o", "-"),
        ("estimate", "before memorization (train), estimate", PREMEM, "s", "-"),
        ("test_accuracy", "test accuracy", TEST, "D", "--"),
    )
    for name, label, color, marker, style in lines:
        _line(top, curves["epoch"], curves[name], label, color, marker, style)
        if f"{name}_error" in curves:
            epoch, low = _measured(curves["epoch"], curves[name] - HALF * curves[f"{name}_error"])
            _, high = _measured(curves["epoch"], curves[name] + HALF * curves[f"{name}_error"])
            top.fill_between(epoch, low, high, color=color, alpha=0.15, linewidth=0)
    drawing.style(top, "" if narrow else "Accuracy before memorization, against accuracy on the test set")
    top.set(ylabel="accuracy (mean over examples)", ylim=(0, 1.02))
    if narrow:
        figure.legend(frameon=False, loc="outside upper left", fontsize=9)
    else:
        top.legend(frameon=False, loc="best")
    epoch, memorized = _measured(curves["epoch"], curves["fraction_memorized"])
    bottom.fill_between(epoch, memorized, color=MEMORIZED, alpha=0.18, linewidth=0)
    bottom.plot(epoch, memorized, color=MEMORIZED, marker=".", linewidth=1.5)
    drawing.style(bottom)
    bottom.set(xlabel="epochs", ylabel="memorized\nfraction", ylim=(0, 1.06), yticks=(0, 0.5, 1))
    bottom.xaxis.set_major_locator(ticker.MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    return drawing.save(figure, path)


def examples_figure(
    trace: Trace,
    threshold: Threshold,
    path: str | os.PathLike | None = None,
    train: str = "train",
    *,
    narrow: bool = False,
) -> Figure:
    """The split `train` example by example.

    Left, one row per example and one column per evaluation: the sample accuracy, the step at which the target crosses
    the threshold, and in a strip of its own the pre-memorization accuracy that results. Right, the target NLL at each
    evaluation with the threshold at the last, and how many examples end at which accuracy with and without the
    memorized part.

    Raises a UserError when no evaluation measured both likelihood and samples on that split.
    """
    split = trace.split(train)
    premem_ME = premem.pre_memorization_accuracy(split.accuracy_or_skipped, split.nll, threshold.perplexity)
    whole = np.flatnonzero(np.isfinite(premem_ME).any(axis=1))
    if not len(whole):
        raise UserError(f"No evaluation has both likelihood and samples on split {train!r}: there is nothing to draw.")
    last = whole[-1]
    figure = Figure(figsize=(4.4, 14) if narrow else (11, 7), layout="constrained")
    if narrow:
        rows = [["map", "strip"], ["scale", "scale"], ["nll", "nll"], ["bars", "bars"]]
        axes = figure.subplot_mosaic(rows, width_ratios=(1, 0.08), height_ratios=(1.6, 0.04, 1, 1))
    else:
        axes = figure.subplot_mosaic(
            [["map", "strip", "nll"], ["map", "strip", "bars"], ["scale", "scale", "bars"]],
            width_ratios=(1.15, 0.06, 1),
            height_ratios=(1.1, 0.95, 0.04),
        )
    image = _heat_map(axes["map"], axes["strip"], split, premem_ME[last], trace.epochs, threshold)
    _color_scale(figure, axes["scale"], image)
    _nll_histogram(axes["nll"], split.nll, trace.epochs, threshold)
    _accuracy_bars(axes["bars"], split, premem_ME, last, trace.epochs[last])
    count = f"{len(split.example):,} training examples"
    title = f"{count}:{chr(10) if narrow else ' '}what was solved before it was memorized"
    figure.suptitle(title, color=INK, fontsize=11 if narrow else 14, weight="bold")
    return drawing.save(figure, path)


def _heat_map(
    axes: Axes, strip: Axes, split: SplitTrace, premem_E: np.ndarray, epochs: np.ndarray, threshold: Threshold
) -> AxesImage:
    """Draws the evaluations that sampled; a crossing at another evaluation is marked at the next of these."""
    sampled = np.flatnonzero(split.samples.any(axis=1))
    accuracy_ME, epochs = split.accuracy[sampled], epochs[sampled]
    crossing_E = np.searchsorted(sampled, premem.first_memorized(split.nll, threshold.perplexity))
    total_E = np.nansum(accuracy_ME, axis=0)
    order = np.lexsort((-total_E, -crossing_E, -np.nan_to_num(premem_E, nan=-1.0)))
    image = _rows_image(axes, accuracy_ME[:, order].T)
    _mark_crossings(axes, crossing_E[order], len(epochs))
    _rows_image(strip, premem_E[order][:, None])
    strip.set(xticks=[0], xticklabels=["pre-\nmem."], yticks=[])
    strip.tick_params(length=0, labelsize=9, colors=INK)
    strip.spines[:].set_visible(False)
    drawing.style(axes, "Sample accuracy, example by example")
    axes.grid(False)
    ticks = _thinned(len(epochs), 9)
    axes.set_xticks(ticks, [f"{epochs[tick]:.3g}" for tick in ticks])
    axes.set(xlabel="epochs at the evaluation", ylabel="training examples, sorted by pre-memorization accuracy")
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    return image


def _rows_image(axes: Axes, values_EM: np.ndarray, most: int = 700) -> AxesImage:
    """Draws one row per example, or means of neighbours if there are more rows than pixels.

    Matplotlib's own resampling would also blend neighbouring columns, which are different evaluations.
    """
    examples, columns = values_EM.shape
    block = np.arange(examples) * min(examples, most) // examples
    known_EM = ~np.isnan(values_EM)
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    total = np.add.reduceat(np.where(known_EM, values_EM, 0.0), starts, axis=0)
    count = np.add.reduceat(known_EM.astype(int), starts, axis=0)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    colors = colormaps["YlGnBu"].with_extremes(bad=UNKNOWN)
    extent = (-0.5, columns - 0.5, examples, 0)
    return axes.imshow(mean, aspect="auto", cmap=colors, vmin=0, vmax=1, interpolation="nearest", extent=extent)


def _color_scale(figure: Figure, axes: Axes, image: AxesImage) -> None:
    bar = figure.colorbar(image, cax=axes, orientation="horizontal")
    bar.set_label("accuracy (red line: the target is memorized for the first time)", color=INK, wrap=True)
    bar.outline.set_visible(False)


def _mark_crossings(axes: Axes, crossing_E: np.ndarray, evaluations: int) -> None:
    """Draws a line left of the first memorized cell of each row; neighbouring rows that cross together share one."""
    starts = np.flatnonzero(np.diff(crossing_E, prepend=-1))
    ends = np.append(starts[1:], len(crossing_E))
    pieces = [
        [(crossing_E[start] - 0.5, start), (crossing_E[start] - 0.5, end)]
        for start, end in zip(starts, ends, strict=True)
        if crossing_E[start] < evaluations
    ]
    axes.add_collection(LineCollection(pieces, colors=MEMORIZED, linewidths=2.2, capstyle="butt", clip_on=False))


def _nll_histogram(axes: Axes, nll_ME: np.ndarray, epochs: np.ndarray, threshold: Threshold) -> None:
    floor = 1e-5  # a target that is certain in float32 has an NLL of 0, which a logarithmic axis cannot show
    measured = [m for m in range(len(nll_ME)) if np.isfinite(nll_ME[m]).any()]
    shown = [measured[i] for i in _thinned(len(measured), 6)]
    values = [np.maximum(nll_ME[m][np.isfinite(nll_ME[m])], floor) for m in shown]
    limit_M = threshold.nll(len(nll_ME))
    everything = np.concatenate([*values, limit_M])
    bins = np.geomspace(max(everything.min(), floor) * 0.9, everything.max() * 1.1, 50)
    shades = colormaps["Blues"](np.linspace(0.3, 0.95, len(shown)))
    for m, value, shade in zip(shown, values, shades, strict=True):
        axes.hist(value, bins, histtype="step", color=shade, linewidth=1.8, label=f"epoch {epochs[m]:.3g}")
    label = f"perplexity {threshold.at_end:.4g}"
    axes.axvline(limit_M[-1], color=MEMORIZED, linewidth=1.8, label=label)
    axes.axvspan(bins[0], limit_M[-1], color=MEMORIZED, alpha=0.06, linewidth=0)
    axes.set_xscale("log")
    axes.set(xlim=(bins[0], bins[-1]), xlabel="target NLL (mean nats per token)", ylabel="examples")
    drawing.style(axes, "Target likelihood (shaded: memorized)")
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])
    axes.legend(
        ncols=3, framealpha=0.9, edgecolor="none", loc="upper left", fontsize=9, columnspacing=1, handlelength=1.2
    )


def _accuracy_bars(axes: Axes, split: SplitTrace, premem_ME: np.ndarray, last: int, epoch: float) -> None:
    known = np.isfinite(premem_ME[last])
    steps = min(max(int(split.samples[last].max()), 1), 10)  # the values that so many samples can give
    edges = (np.arange(steps + 2) - 0.5) / steps
    width = 0.38 / steps
    for shift, values, label, color in (
        (-width / 2, split.accuracy[last], "accuracy", TRAIN),
        (width / 2, premem_ME[last], "pre-memorization accuracy", PREMEM),
    ):
        counts, _ = np.histogram(values[known], edges)
        axes.bar(np.arange(steps + 1) / steps + shift, counts, width=width, color=color, label=label)
    axes.set(xlabel="accuracy of an example", ylabel="examples", xticks=np.arange(steps + 1) / steps)
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%.3g"))
    drawing.style(axes, f"Where the examples end, at epoch {epoch:.3g}")
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])
    axes.legend(framealpha=0.85, edgecolor="none", loc="upper left", fontsize=9)


def _thinned(count: int, most: int) -> np.ndarray:
    """Up to `most` of `count` indices, evenly spaced, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _measured(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(y)
    return x[known], y[known]


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, marker: str, style: str) -> None:
    x, y = _measured(x, y)
    last = f"{label}: {y[-1]:.3f} at the end" if len(y) else f"{label}: not measured"
    axes.plot(x, y, style, marker=marker, markersize=5.5, linewidth=2.2, color=color, label=last)
