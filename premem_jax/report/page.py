"""The report of a run, one self-contained HTML file: result, figures, numbers, every example."""

import base64
import math
from collections.abc import Iterable, Mapping

import jinja2
import numpy as np
from etils.epath import Path

from premem_jax.analysis import response_curves
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace
from premem_jax.report import dynamics_figures, figures
from premem_jax.report.explorer import explorer
from premem_jax.running import atomic

_COLUMNS = (
    ("epoch", "epoch", "{:.4g}"),
    ("step", "step", "{:,}"),
    ("train_nll", "train NLL", "{:.4f}"),
    ("fraction_memorized", "memorized", "{:.3f}"),
    ("train_accuracy", "train accuracy", "{:.4f}"),
    ("pre_memorization_accuracy", "pre-memorization accuracy", "{:.4f}"),
    ("test_accuracy", "test accuracy", "{:.4f}"),
)
_CAPTIONS = {
    "curves.png": "The claim to check by eye: the pre-memorization accuracy of the training examples follows the test "
    "accuracy, while the train accuracy leaves both behind as examples are memorized.",
    "responses.png": dynamics_figures.CAPTION,
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
) -> Path:
    """Writes a self-contained `report.html`, and the figures in it to `figures/`; returns the path of the page.

    `curves.png` needs a measurement of train or test, `examples.png` the pre-memorization accuracy, the explorer any
    measured example; parts without data are omitted.

    Args:
      workdir: the run's folder.
      trace: the run's trace.
      curves: the result of `analysis.curves.run_curves`.
      threshold: the threshold of the curves, or None.
      summary: flat facts of the run, name to value, shown in this order; `first_example` has three texts.
      examples: rows {split, example, prompt, reference}, the texts of the examples.
      samples: rows {step, split, example, responses: [{text, verdict}]}, verdicts from `explorer.VERDICTS`.
      train: the training split.

    Raises:
      ValueError: an unknown verdict.
    """
    explored = explorer(trace, threshold, examples, samples, train) if trace.splits else None
    drawn, folder = [], workdir / "figures"
    if any(np.isfinite(values).any() for name, values in curves.items() if name not in ("step", "epoch")):
        figures.curves_figure(curves, folder / "curves.png")
        drawn.append("curves.png")
    if np.isfinite(curves["pre_memorization_accuracy"]).any():
        figures.examples_figure(trace, threshold, folder / "examples.png", train)
        drawn.append("examples.png")
    if response_curves.response_types(trace, train):
        since = {"": int(summary.get("sft_steps", 0))}
        dynamics_figures.responses_figure({"": trace}, since, folder / "responses.png")
        drawn.append("responses.png")
    limits = {}
    if threshold is not None:
        limits = facts({"perplexity": threshold.perplexity, "mean NLL": threshold.nll, "rule": threshold.rule})
        limits |= facts(threshold.detail)
    html = (
        environment()
        .get_template("page.html")
        .render(
            headline=headline(curves),
            notices=trace.notices,
            figures=[{"caption": _CAPTIONS[name], "data": as_base64(folder / name)} for name in drawn],
            columns=[title for _, title, _ in _COLUMNS],
            rows=_rows(curves),
            threshold=limits,
            summary=facts({name: value for name, value in summary.items() if name != "first_example"}),
            first=summary.get("first_example"),
            explorer=explored,
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


def headline(curves: Mapping[str, np.ndarray]) -> str:
    """The result in two sentences, at the last evaluation that measured the pre-memorization accuracy.

    Test accuracy is from there, or from the last earlier evaluation that measured it, which is then named. Without a
    pre-memorization accuracy, the last other measurements are given.
    """
    at = _last(curves["pre_memorization_accuracy"])
    if at is None:
        return _without_metric(curves)
    predicted, train = curves["pre_memorization_accuracy"][at], curves["train_accuracy"][at]
    its_train, its_error = "", ""  # unknown where memorized examples were not sampled
    if not math.isnan(train):
        its_train = f"; the train accuracy is {train:.1%}"
    first = (
        f"At epoch {curves['epoch'][at]:.3g} the pre-memorization accuracy is {predicted:.1%}, which is the "
        f"prediction for the test accuracy{its_train}."
    )
    measured = _last(curves["test_accuracy"][: at + 1])
    if measured is None:
        return f"{first} Test accuracy was not measured."
    test = curves["test_accuracy"][measured]
    if not math.isnan(train):
        its_error = f", the train accuracy by {100 * (train - test):+.1f}"
    when = "" if measured == at else f" (at epoch {curves['epoch'][measured]:.3g})"
    return (
        f"{first} The measured test accuracy is {test:.1%}{when}: the prediction is off by "
        f"{100 * (predicted - test):+.1f} points{its_error}."
    )


def _without_metric(curves: Mapping[str, np.ndarray]) -> str:
    last = {key: at for key, _, _ in _COLUMNS[2:] if (at := _last(curves[key])) is not None}
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
    return [[_number(curves[key][m], form) for key, _, form in _COLUMNS] for m in evaluations]


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else form.format(value)


def facts(values: Mapping[str, object]) -> dict[str, str]:
    """Names and values as text: underscores to spaces, floats to six digits."""
    floats = (float, np.floating)
    return {
        name.replace("_", " "): f"{value:.6g}" if isinstance(value, floats) else str(value)
        for name, value in values.items()
    }


def as_base64(path: Path) -> str:
    """The bytes of a file as base64 text."""
    return base64.b64encode(path.read_bytes()).decode("ascii")
