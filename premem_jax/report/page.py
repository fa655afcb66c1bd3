"""The report of a run, one self-contained HTML file: result, figures, numbers, every example."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jinja2
import numpy as np
from etils.epath import Path

from premem_jax.analysis import record, response_curves
from premem_jax.analysis.curves import HALF, interval
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace
from premem_jax.report import audit_page, drawing, dynamics_figures, figures, influence_figure, next_steps
from premem_jax.report.explorer import explorer
from premem_jax.running import atomic

_COLUMNS = (
    ("epoch", "epoch", "{:.4g}"),
    ("step", "step", "{:,}"),
    ("train_nll", "train NLL", "{:.4f}"),
    ("threshold", "threshold", "{:.4f}"),
    ("fraction_memorized", "memorized", "{:.3f}"),
    ("train_accuracy", "train accuracy", "{:.4f}"),
    ("estimate", "before memorization, estimate", "{:.4f}"),
    ("pre_memorization_accuracy", "as published", "{:.4f}"),
    ("test_accuracy", "test accuracy", "{:.4f}"),
)
MOST_LEFT = 0.01  # by which more samples may be expected to change the published value, without a warning
_CAPTIONS = {
    "curves.png": "The claim to check by eye: the accuracy of the training examples before they are memorized follows "
    "the test accuracy, while the train accuracy leaves both behind. Bands: 95 % intervals over examples.",
    "responses.png": dynamics_figures.CAPTION,
    "influence.png": influence_figure.CAPTION,
    "examples.png": "Each row on the left is a training example. At its red line its reference solution is memorized, "
    "and while it stays so, samples no longer speak for what was learned and cannot raise its score.",
}


def write_report(
    workdir: Path,
    trace: Trace,
    curves: Mapping[str, np.ndarray],
    threshold: Threshold | None,
    summary: Mapping[str, object],
    examples: Iterable[Mapping],
    samples: Iterable[Mapping],
    train: str = "train",
    audited: Mapping[str, np.ndarray] | None = None,
    pairs: Mapping[str, Mapping[int, float]] | None = None,
) -> Path:
    """Writes a self-contained `report.html`, and the figures in it to `figures/`; returns the path of the page.

    `curves.png` needs a measurement of train or test, `examples.png` the pre-memorization accuracy, the explorer any
    measured example, `map.png` the audit; parts without data are omitted.

    Args:
      workdir: the run's folder.
      trace: the run's trace.
      curves: the result of `analysis.curves.run_curves`.
      threshold: the threshold of the curves, or None.
      summary: flat facts of the run, name to value, shown in this order; `first_example` has three texts.
      examples: rows {split, example, prompt, reference}, the texts of the examples.
      samples: rows {step, split, example, responses: [{text, verdict}]}, verdicts from `explorer.VERDICTS`.
      train: the training split.
      audited: the result of `analysis.audit.audit`, if there is one.
      pairs: further columns of the chosen responses, see `explorer`.

    Raises:
      ValueError: an unknown verdict.
    """
    examples = list(examples)
    explored = explorer(trace, threshold, examples, samples, train, pairs) if trace.splits else None
    drawn, folder = [], workdir / "figures"
    if any(np.isfinite(values).any() for name, values in curves.items() if name not in ("step", "epoch")):
        drawing.both(figures.curves_figure, folder / "curves.png", curves)
        drawn.append("curves.png")
    if np.isfinite(curves["pre_memorization_accuracy"]).any():
        drawing.both(figures.examples_figure, folder / "examples.png", trace, threshold, train=train)
        drawn.append("examples.png")
    if response_curves.response_types(trace, train):
        since = {"": int(summary.get("sft_steps", 0))}
        drawing.both(dynamics_figures.responses_figure, folder / "responses.png", {"": trace}, since)
        drawn.append("responses.png")
    if documents := influence_figure.documents(workdir):
        drawing.both(influence_figure.influence_figure, folder / "influence.png", documents)
        drawn.append("influence.png")
    texts = {row["example"]: (row["prompt"], row["reference"]) for row in examples if row["split"] == train}
    limits = {}
    if threshold is not None:
        limits = facts({"perplexity": threshold, "rule": threshold.rule})
        limits |= facts(threshold.detail)
    html = (
        environment()
        .get_template("page.html")
        .render(
            headline=headline(curves, summary),
            notices=trace.notices,
            figures=[drawing.picture(folder / name, _CAPTIONS[name]) for name in drawn],
            next_steps=next_steps.of_run(trace, curves, threshold, train),
            columns=[title for _, title, _ in _COLUMNS],
            rows=_rows(curves),
            threshold=limits,
            summary=facts({name: value for name, value in summary.items() if name != "first_example"}),
            first=summary.get("first_example"),
            explorer=explored,
            audit=audit_page.section(audited, texts, folder / "map.png") if audited else {},
        )
    )
    path = workdir / "report.html"
    atomic.write_text(path, html)
    return path


def environment() -> jinja2.Environment:
    """Templates beside this file, with autoescaping."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )


def headline(curves: Mapping[str, np.ndarray], summary: Mapping[str, object] = MappingProxyType({})) -> str:
    """The result in a few sentences, at the last evaluation that measured the pre-memorization accuracy.

    Test accuracy is from there, or from the last earlier evaluation that measured it, which is then named. Without a
    pre-memorization accuracy, the last other measurements are given. Of the run's summary, `task` says which record is
    cited, and `extrapolation` is compared with the published value.
    """
    at = _last(curves["estimate"])
    if at is None:
        return _without_metric(curves)
    published, train = curves["pre_memorization_accuracy"][at], curves["train_accuracy"][at]
    its_train = "" if math.isnan(train) else f"; the train accuracy is {train:.1%}"  # unknown where some were skipped
    said = [
        f"At epoch {curves['epoch'][at]:.3g} the accuracy before memorization is {_between(curves, 'estimate', at)} by "
        f"the shrunk estimate, {published:.1%} as published{its_train}."
    ]
    measured = _last(curves["test_accuracy"][: at + 1])
    if measured is None:
        said.append("Test accuracy was not measured.")
    else:
        off = curves["estimate"][at] - curves["test_accuracy"][measured]
        error = math.hypot(curves["estimate_error"][at], curves["test_accuracy_error"][measured])
        around = "" if math.isnan(error) else f" ± {100 * HALF * error:.1f}"
        when = "" if measured == at else f" (at epoch {curves['epoch'][measured]:.3g})"
        said.append(
            f"The measured test accuracy is {_between(curves, 'test_accuracy', measured)}{when}: the estimate is off "
            f"by {100 * off:+.1f}{around} points."
        )
    limit = summary.get("extrapolation")
    if limit is not None and abs(published - limit) > MOST_LEFT:
        said.append(
            f"The published value would change with more samples: extrapolated to many, it is {limit:.1%}, "
            f"{100 * (limit - published):+.1f} points."
        )
    return " ".join([*said, record.sentence(str(summary.get("task", "")))])


def _between(curves: Mapping[str, np.ndarray], name: str, at: int) -> str:
    value, error = curves[name][at], curves[f"{name}_error"][at]
    if math.isnan(error):
        return f"{value:.1%}"
    low, high = interval(value, error)
    return f"{value:.1%} (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def _without_metric(curves: Mapping[str, np.ndarray]) -> str:
    measured = [key for key, _, _ in _COLUMNS[2:] if key != "threshold"]
    last = {key: at for key in measured if (at := _last(curves[key])) is not None}
    if not last:
        return "The run has trained. Nothing was evaluated."
    values = [
        f"{title} {_number(curves[key][last[key]], form)} (epoch {curves['epoch'][last[key]]:.3g})"
        for key, title, form in _COLUMNS
        if key in last
    ]
    return f"Measured last: {', '.join(values)}. The run has no pre-memorization accuracy."


def _last(values_M: np.ndarray) -> int | None:
    known = np.flatnonzero(np.isfinite(values_M))
    return int(known[-1]) if len(known) else None


def _rows(curves: Mapping[str, np.ndarray]) -> list[list[str]]:
    evaluations = range(len(curves["step"]))
    never = np.full(len(evaluations), np.nan)
    around = lambda key, m: _number(HALF * curves.get(f"{key}_error", never)[m], " ± {:.4f}", "")
    return [[_number(curves[key][m], form) + around(key, m) for key, _, form in _COLUMNS] for m in evaluations]


def _number(value: float, form: str, unknown: str = "–") -> str:
    return unknown if math.isnan(value) else form.format(value)


def facts(values: Mapping[str, object]) -> dict[str, str]:
    """Names and values as text: underscores to spaces, floats to six digits."""
    floats = (float, np.floating)
    return {
        name.replace("_", " "): f"{value:.6g}" if isinstance(value, floats) else str(value)
        for name, value in values.items()
    }
