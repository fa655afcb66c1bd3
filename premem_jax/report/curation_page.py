"""The report of a curation: accuracy against number of examples, selections of each strategy, sample texts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path
from matplotlib.figure import Figure

from premem_jax.analysis.jobs import IID, ORACLE, job_of
from premem_jax.report import drawing, page
from premem_jax.running import atomic

COLORS = ("#0b6e99", "#d1622b", "#c2185b", "#4c956c", "#7a5195", "#b08900", "#555b6e", "#2f4b7c", "#a05195", "#665191")
CAPTIONS = {
    "accuracy": "Test accuracy against training examples, the original ones and those added. The line is the accuracy "
    "with examples added at random, made to rise. A strategy above it gives the same accuracy with fewer; bars are "
    "95 % intervals over seeds.",
    "types": "Of which types the added examples are, over all members of a strategy.",
}


def write_curation(folder: Path, result: Mapping, texts: Mapping[str, Sequence[tuple[str, str]]]) -> Path:
    """Writes `figures/*.png` and a self-contained `report.html` into `folder`; returns the path of that.

    Args:
      result: the conclusion of `experiments.curate`.
      texts: for each strategy, pairs of an original question and a new example.
    """
    figures = {"accuracy": folder / "figures" / "accuracy.png", "types": folder / "figures" / "types.png"}
    drawing.both(accuracy_figure, figures["accuracy"], result)
    drawing.both(types_figure, figures["types"], result["types"])
    section = {
        "name": "curation",
        "headline": headline(result),
        "figures": [drawing.picture(path, CAPTIONS[kind]) for kind, path in figures.items()],
        "tables": [_points(result), _texts(texts)],
        "notes": [],
    }
    facts = {"seeds": ", ".join(map(str, result["seeds"])) or "none", "original examples": result["originals"]}
    template = page.environment().get_template("study.html")
    title = "What does collecting new examples where the model is weak save?"
    path = folder / "report.html"
    atomic.write_text(path, template.render(title=title, tasks=[section], facts=page.facts(facts), metric=False))
    return path


def headline(result: Mapping) -> str:
    """The savings of the oracle and of the best other strategy, in a sentence or two."""
    points = [point for point in result["points"] if point["strategy"] != IID]
    if not points:
        return "No seed has all members, so there is nothing to compare."
    parts = [f"Over {len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)}: "]
    parts += ["; ".join(f"{p['strategy']} with {p['examples']:,} examples {_ratio(p)}" for p in points), "."]
    if len(result["seeds"]) < 2:
        parts.append(" One seed has no interval, so nothing can be concluded from it.")
    return "".join(parts)


def accuracy_figure(result: Mapping, path: Path, *, narrow: bool = False) -> Figure:
    """Writes a PNG of test accuracy against training examples for every strategy."""
    figure = drawing.blank((8, 4.8), narrow)
    axes = figure.subplots()
    iid = [point for point in result["points"] if point["strategy"] == IID]
    sizes = [result["originals"], *(point["examples"] for point in iid)]
    levels = [result["base_accuracy"], *(point["accuracy"] for point in iid)]
    axes.plot(*result["iid_curve"], color=drawing.TRAIN, linewidth=1.5, label="at random")
    axes.plot(sizes, levels, "o", color=drawing.TRAIN)
    names = [name for name in dict.fromkeys(point["strategy"] for point in result["points"]) if name != IID]
    for name, color in zip(names, COLORS, strict=False):
        of = [point for point in result["points"] if point["strategy"] == name]
        x, y = [point["examples"] for point in of], np.array([point["accuracy"] for point in of])
        ends = np.array([point["interval"] or [point["accuracy"]] * 2 for point in of]).T
        axes.errorbar(x, y, np.abs(ends - y), color=color, marker="D", capsize=3, label=name.replace("_", " "))
    drawing.style(axes, "Test accuracy against training examples")
    axes.set(xlabel="training examples", ylabel="test accuracy (mean over seeds)")
    drawing.legend(axes, fontsize=10)
    return drawing.save(figure, path)


def types_figure(types: Mapping[str, Mapping[str, int]], path: Path, *, narrow: bool = False) -> Figure:
    """Writes a PNG of the shares of types among each strategy's added examples; `types` by member."""
    totals: dict[str, Counter] = {}
    for name, counts in types.items():
        totals.setdefault(job_of(name).strategy, Counter()).update(counts)
    kinds = sorted({kind for counts in totals.values() for kind in counts})
    figure = drawing.blank((8, 1.2 + 0.5 * len(totals) + (0.25 * len(kinds) if narrow else 0)), narrow)
    axes, left = figure.subplots(), np.zeros(len(totals))
    for kind, color in zip(kinds, COLORS * len(kinds), strict=False):
        share = np.array([counts[kind] / max(1, sum(counts.values())) for counts in totals.values()])
        axes.barh([name.replace("_", " ") for name in totals], share, left=left, color=color, label=drawing.label(kind))
        left += share
    drawing.style(axes, "Types of the examples that were added")
    axes.set(xlim=(0, 1))
    drawing.legend(axes, fontsize=10, **({} if narrow else dict(loc="upper left", bbox_to_anchor=(1, 1))))
    return drawing.save(figure, path)


def _points(result: Mapping) -> dict:
    columns = [
        "strategy",
        "examples",
        "test accuracy",
        "gain over random",
        "ratio",
        "share of the oracle's gain",
        "seconds",
    ]
    cell = lambda text, interval="": {"text": text, "interval": interval}
    rows = []
    for p in result["points"]:
        gain = f"{100 * p['gain']:+.1f}" if p["strategy"] != IID else "–"
        rows.append(
            [
                cell(p["strategy"].replace("_", " ")),
                cell(f"{p['examples']:,}"),
                cell(f"{p['accuracy']:.1%}", _range(p["interval"], 100)),
                cell(gain, _range(p["gain_interval"], 100) if gain != "–" else ""),
                cell(_ratio(p), _range(p.get("ratio_interval"))) if p["strategy"] != IID else cell("–"),
                cell(
                    "–" if p.get("share_of_oracle") is None else f"{p['share_of_oracle']:.2f}",
                    _range(p.get("share_interval")),
                ),
                cell(f"{p['seconds']:,.0f}"),
            ]
        )
    note = (
        "The ratio is how many examples at random give the same accuracy, over those it has. Seconds are of training, "
        "scoring and sampling of its runs."
    )
    marked = [i for i, p in enumerate(result["points"]) if p["strategy"] == ORACLE]
    return {"title": "Strategies", "note": note, "columns": columns, "rows": rows, "marked": marked}


def _texts(texts: Mapping[str, Sequence[tuple[str, str]]]) -> dict:
    rows = [
        [{"text": text, "interval": ""} for text in (strategy.replace("_", " "), original, new)]
        for strategy, pairs in texts.items()
        for original, new in pairs
    ]
    note = "A few originals of each strategy, and what was added for them."
    return {
        "title": "Examples",
        "note": note,
        "columns": ["strategy", "original", "new"],
        "rows": rows,
        "marked": [],
        "texts": True,
    }


def _ratio(point: Mapping) -> str:
    return f"{'at least ' * point['censored']}×{point['ratio']:.2f}"


def _range(interval: Sequence[float | None] | None, scale: float = 1) -> str:
    if interval is None:
        return ""
    low, high = ("beyond" if x is None or math.isinf(x) else f"{scale * x:.2f}" for x in interval)
    return f"{low} … {high}"
