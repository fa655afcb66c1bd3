"""The audit of a trace on pages: the data map, and the examples to look at."""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils.epath import Path
from matplotlib.figure import Figure

from premem_jax.analysis import audit
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import Trace
from premem_jax.report import drawing
from premem_jax.report.drawing import INK
from premem_jax.running import atomic

SHOWN = 15  # suspects
SUSPECT_COLUMNS = ("example", "suspicion", "accuracy", "agreement", "prompt", "target")
MAP_CAPTION = (
    "Data map: each dot is a training example. Top left is easy, bottom left hard or labelled wrongly, the right "
    "ambiguous."
)
NOTE = (
    "Examples whose label is most suspect: while it was not memorized, the samples say another answer, or at least not "
    "that of the label. Most are merely hard; read before you delete. The columns of all examples are in audit.parquet."
)


RUNS_NOTE = (
    "Numbers of training examples; memorized first: no later than it was first solved; forgotten: solved and then not. "
    "Over-memorization: by how many nats the held-out NLL is above its minimum at the end."
)


def write_table(path: str | os.PathLike, columns: Mapping[str, np.ndarray | Sequence]) -> None:
    """Writes columns as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, compression="zstd")
    atomic.write_bytes(path, buffer.getvalue())


def audited(
    folder: Path, trace: Trace, threshold: Threshold | None, curves: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """The audit of a run, also written to its folder as `audit.parquet`; None without an estimate."""
    if not np.isfinite(curves["estimate"]).any():
        return None
    found = audit.audit(trace, threshold)
    write_table(folder / "audit.parquet", found)
    return found


def section(columns: Mapping[str, np.ndarray], texts: Mapping[int, tuple[str, str]], figure: Path) -> dict:
    """The audit on a run's page, from its columns and the texts of examples; draws the data map as `figure`."""
    drawing.both(map_figure, figure, columns)
    return {
        "said": said(audit.summary(columns, None)),
        "note": NOTE,
        "columns": SUSPECT_COLUMNS,
        "rows": suspects(columns, texts),
        "figure": drawing.picture(figure, MAP_CAPTION),
    }


def map_figure(columns: Mapping[str, np.ndarray], path: str | os.PathLike, *, narrow: bool = False) -> Figure:
    """Writes a PNG: the mean accuracy of each example over evaluations by its deviation, colored by its first NLL."""
    figure = drawing.blank((6.4, 5), narrow)
    axes = figure.subplots()
    # Few samples give few values: the dots are spread a little, always in the same way.
    x, y = (
        columns[name] + np.random.default_rng(0).uniform(-0.01, 0.01, len(columns[name]))
        for name in ("deviation", "mean_accuracy")
    )
    color = np.log(np.maximum(columns["first_nll"], 1e-5))
    dots = axes.scatter(x, y, c=color, s=9, cmap="viridis", alpha=0.7, linewidth=0)
    figure.colorbar(dots, ax=axes).set_label("log of the target NLL at the first evaluation", color=INK)
    axes.set(
        xlabel="deviation of accuracy over evaluations", ylabel="mean accuracy over evaluations", ylim=(-0.03, 1.03)
    )
    drawing.style(axes, f"{len(x):,} training examples")
    return drawing.save(figure, path)


def said(found: Mapping[str, float | int]) -> str:
    """The result of `audit.summary` in a sentence or two."""
    text = (
        f"Of {found['examples']:,} training examples, {found['memorized_at_once']:,} were memorized at the first "
        f"evaluation (they have no accuracy before memorization; the first accuracy stands for it), "
        f"{found['memorized_first']:,} no later than they were first solved; {found['never_solved']:,} were never "
        f"solved and {found['forgotten']:,} were solved and then not."
    )
    if np.isfinite(found["over_memorization"]):
        text += f" At the end the held-out NLL is {found['over_memorization']:.3f} nats above its minimum."
    return text


def suspects(columns: Mapping[str, np.ndarray], texts: Mapping[int, tuple[str, str]]) -> list[list[str]]:
    """Rows of the page: example, suspicion, accuracy, agreement, and its texts (prompt, reference) if known."""
    order = audit.ranked(columns["suspicion"], columns.get("first_nll", columns["suspicion"]))[:SHOWN]
    number = lambda value: f"{value:.3f}" if np.isfinite(value) else "–"
    accuracy = columns["unmemorized_accuracy"]
    rows = []
    for e in order:
        id = int(columns["example"][e])
        known = [textwrap.shorten(text, 300) for text in texts.get(id, ("", ""))]
        values = (number(values[e]) for values in (columns["suspicion"], accuracy, columns["agreement"]))
        rows.append([str(id), *values, *known])
    return rows
