"""One HTML file on a study of preference training: the arms side by side."""

from collections.abc import Mapping

from etils.epath import Path

from premem_jax.analysis.trace import Trace
from premem_jax.report import dynamics_figures, page
from premem_jax.running import atomic


def write_page(
    folder: Path, arms: Mapping[str, Trace], since: Mapping[str, int], values: Mapping[str, Mapping[str, float | None]]
) -> Path:
    """Writes `report.html` and its figure to `folder`; returns the path of the page.

    Args:
      arms: the traces by the names of the arms.
      since: of each, the step at which preference training began.
      values: of each, a row of the table.
    """
    dynamics_figures.responses_figure(arms, since, folder / "responses.png")
    columns = list(next(iter(values.values()), {}))
    environment = page.environment()
    html = environment.get_template("dynamics.html").render(
        figure=page.as_base64(folder / "responses.png"),
        caption=dynamics_figures.CAPTION,
        columns=[column.replace("_", " ") for column in columns],
        rows={name: [_cell(row[column]) for column in columns] for name, row in values.items()},
        notices={name: trace.notices for name, trace in arms.items() if trace.notices},
    )
    path = folder / "report.html"
    atomic.write_text(path, html)
    return path


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
