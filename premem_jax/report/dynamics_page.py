"""One HTML file on a study of preference training: the arms side by side."""

from collections.abc import Mapping, Sequence

from etils.epath import Path

from premem_jax.analysis import arms
from premem_jax.analysis.trace import Trace
from premem_jax.report import drawing, dynamics_figures, page
from premem_jax.running import atomic


def write_page(
    folder: Path,
    drawn: Mapping[str, Trace],
    since: Mapping[str, int],
    values: Mapping[str, Mapping[str, float | None]],
    columns: Sequence[str],
    contrasts: Sequence[arms.Contrast] = (),
) -> Path:
    """Writes `report.html` and its figure to `folder`; returns the path of the page.

    Args:
      drawn: the traces of the figure, by run.
      since: of each, the step at which preference training began.
      values: of each run, its summary's numbers.
      columns: which of them are in the table.
      contrasts: differences between arms, of a study with seeds.
    """
    drawing.both(dynamics_figures.responses_figure, folder / "responses.png", drawn, since)
    compared: dict[str, dict[str, str]] = {}
    for contrast in contrasts:
        compared.setdefault(f"{contrast.of} − {contrast.against}", {})[contrast.column] = contrast.text
    environment = page.environment()
    html = environment.get_template("dynamics.html").render(
        figure=drawing.picture(folder / "responses.png", dynamics_figures.CAPTION),
        columns=[column.replace("_", " ") for column in columns],
        rows={name: [_cell(row[column]) for column in columns] for name, row in values.items()},
        compared={name: [row.get(column, "–") for column in columns] for name, row in compared.items()},
        drawn=list(drawn),
        notices={name: trace.notices for name, trace in drawn.items() if trace.notices},
    )
    path = folder / "report.html"
    atomic.write_text(path, html)
    return path


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
