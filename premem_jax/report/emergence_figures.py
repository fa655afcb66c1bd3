"""Figures of a forecast of emergence, drawn from what `analysis.emergence_forecast` returns."""

from collections.abc import Mapping

import numpy as np
from etils.epath import Path
from matplotlib import colormaps
from matplotlib.figure import Figure

from premem_jax.analysis.emergence_elbow import elbow
from premem_jax.analysis.emergence_law import Law
from premem_jax.analysis.emergence_table import Rows
from premem_jax.report import drawing
from premem_jax.report.drawing import FAINT, INK, MEMORIZED, PREMEM, TEST, TRAIN

LOSS = "pretraining loss (nats per token)"


def draw(folder: Path, rows: Rows, strong: Rows | None, found: dict, said: dict | None) -> dict[str, Path]:
    """The figures there are numbers for: name to PNG."""
    law = law_of(found)
    paths = {"accuracy": folder / "accuracy.png", "forecast": folder / "forecast.png"}
    drawing.both(accuracy_figure, paths["accuracy"], rows, law)
    drawing.both(forecast_figure, paths["forecast"], rows, strong, found, said)
    if law:
        paths |= {"law": folder / "law.png", "posterior": folder / "posterior.png"}
        drawing.both(law_figure, paths["law"], rows, law, found)
        drawing.both(posterior_figure, paths["posterior"], found, said)
    return paths


def law_of(found: Mapping) -> Law | None:
    """The fitted law of a forecast, where there is one."""
    names = Law.__dataclass_fields__
    return Law(**{name: found["law"][name] for name in names}) if found["law"] else None


def accuracy_figure(rows: Rows, law: Law | None, path: Path, *, narrow: bool = False) -> Figure:
    """Writes a PNG of accuracy against loss, one colour per amount of data, with the law's curves."""
    figure = drawing.blank((8, 5.2), narrow)
    axes = figure.subplots()
    amounts = np.unique(rows.finetuned.amount)
    at = np.linspace(rows.loss.min(), rows.loss.max(), 200)
    for i, amount in enumerate((0, *amounts)):
        mine = rows.where(rows.amount == amount)
        if not len(mine.loss):
            continue
        color = INK if amount == 0 else colormaps["viridis"](0.9 * i / max(len(amounts), 1))
        label = f"{amount:,.0f} examples" if amount else "few-shot"
        axes.plot(mine.loss, mine.accuracy, "s" if amount == 0 else "o", color=color, markersize=4.5, label=label)
        if law:
            axes.plot(at, law.accuracy(at, amount), color=color, linewidth=1.4)
    drawing.style(axes, "Accuracy after finetuning on so many examples")
    axes.set(xlabel=f"{LOSS}, stronger to the right", ylabel="accuracy")
    axes.invert_xaxis()
    drawing.legend(axes, title="lines: the law" if law else None)
    return drawing.save(figure, path)


def law_figure(rows: Rows, law: Law, found: Mapping, path: Path, *, narrow: bool = False) -> Figure:
    """Writes a PNG of the elbow against the amount of data: the law, and the elbow of each amount by itself."""
    figure = drawing.blank((8, 4.8), narrow)
    axes = figure.subplots()
    amounts = np.geomspace(law.shots, law.largest, 200)
    axes.plot(amounts, law.elbow_at(amounts), color=PREMEM, linewidth=2.2, label="the law")
    for amount in np.unique(rows.finetuned.amount):
        mine = rows.where(rows.amount == amount)
        if one := elbow(mine.loss, mine.accuracy, mine.items):
            axes.plot([amount], [one.elbow], "o", color=TRAIN, label="one amount by itself")
    low, high = found["interval"]
    axes.errorbar(
        [law.shots],
        [law.elbow],
        yerr=[[max(law.elbow - low, 0)], [max(high - law.elbow, 0)]],
        fmt="D",
        color=MEMORIZED,
        capsize=4,
        label=f"few-shot, 90 % ({found['interval_from']})",
    )
    axes.axhline(rows.loss.min(), color=INK, linewidth=0.8, linestyle=":", label="strongest model fitted")
    axes.set_xscale("log")
    axes.set(xlabel="finetuning examples", ylabel="elbow (nats)")
    drawing.style(axes, "How finetuning moves the elbow")
    drawing.legend(axes)
    return drawing.save(figure, path)


def posterior_figure(found: Mapping, said: Mapping | None, path: Path, *, narrow: bool = False) -> Figure:
    """Writes a PNG of the distribution function of the few-shot elbow, by posterior and by bootstrap."""
    figure = drawing.blank((8, 4.4), narrow)
    axes = figure.subplots()
    colors = {"posterior": PREMEM, "bootstrap": MEMORIZED}
    for name, values in found["percentiles"].items():
        shares = [float(key[:-1]) / 100 for key in values]
        axes.plot(list(values.values()), shares, "o-", color=colors[name], markersize=4, label=name)
    axes.axvline(found["law"]["elbow"], color=INK, linewidth=1, label="maximum likelihood")
    if said and said["elbow"] is not None:
        axes.axvline(said["elbow"], color=TEST, linewidth=1.6, linestyle="--", label="truth")
    axes.set(xlabel="few-shot elbow (nats)", ylabel="share of draws below", ylim=(0, 1))
    drawing.style(axes, "How far the elbow is known")
    drawing.legend(axes)
    return drawing.save(figure, path)


def forecast_figure(
    rows: Rows, strong: Rows | None, found: Mapping, said: Mapping | None, path: Path, *, narrow: bool = False
) -> Figure:
    """Writes a PNG of few-shot accuracy against loss: of weak models, as predicted, and of strong models."""
    figure = drawing.blank((8, 5.2), narrow)
    axes = figure.subplots()
    few = rows.fewshot
    axes.plot(few.loss, few.accuracy, "s", color=INK, markersize=5, label="models fitted, few-shot")
    end = rows.loss.min() - (0.5 * np.ptp(rows.loss))
    if strong is not None:
        news = strong.fewshot
        end = min(end, news.loss.min())
        axes.plot(news.loss, news.accuracy, "o", color=TEST, markersize=5, label="stronger models")
    at = np.array(found["grid"])
    seen = at >= end
    for one in found["baselines"].values():
        if one["curve"] is not None:
            axes.plot(at[seen], np.array(one["curve"])[seen], color=TRAIN, linewidth=1, alpha=0.6)
    axes.plot([], [], color=TRAIN, linewidth=1, label="baselines")
    if found["curve"]:
        accuracy = np.array(found["curve"]["accuracy"])
        axes.plot(at[seen], accuracy[seen], color=PREMEM, linewidth=2.2, label="emergence law")
        axes.axvspan(*found["interval"], color=MEMORIZED, alpha=0.15, linewidth=0, label="elbow, 90 % interval")
    if said and said["elbow"] is not None:
        axes.axvline(said["elbow"], color=TEST, linewidth=1.4, linestyle="--", label="true elbow")
    axes.axvline(rows.loss.min(), color=FAINT, linewidth=1.2)
    axes.set(xlabel=f"{LOSS}, stronger to the right", ylabel="few-shot accuracy", xlim=(rows.loss.max(), end))
    drawing.style(axes, "Few-shot accuracy, predicted and measured")
    drawing.legend(axes, loc="upper left")
    return drawing.save(figure, path)
