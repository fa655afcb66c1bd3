"""Forecast where few-shot ability appears, from a table of models finetuned on growing amounts of data.

The forecast is written to `forecast.json` before the truth is opened, and never again: a sealed file with the commit
and the checksum of the rows. A folder in which the truth was looked at without one takes no forecast any more.
"""

from typing import NamedTuple

from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis.emergence_forecast import forecast, verdict
from premem_jax.analysis.emergence_table import Rows, checksum, read
from premem_jax.errors import UserError
from premem_jax.experiments.analyze import without_nan
from premem_jax.report import emergence_figures
from premem_jax.report.emergence_page import headline, write_emergence
from premem_jax.running import progress, sealed, storage, workdir
from premem_jax.running.lease import opened

TRUTH = "truth_opened.json"


def run(config, folder: Path) -> dict:
    """Reads `config.table`, and writes `forecast.json`, `summary.json`, `figures/` and `report.html` into `folder`.

    With `config.truth`, a table with few-shot rows of stronger models, it then says how the forecast turned out.

    Raises:
      UserError: a table that cannot be used; a folder whose forecast is of other rows, or that has the truth already.
    """
    keys.check(config)
    table = storage.path(config.table)
    rows, notes = read(table)
    about = {"table": str(table), "truth": config.truth}
    asked = Asked(config.shots, config.form, config.draws, config.seed)
    with opened(folder, config.to_dict()):
        found = forecast_once(folder, rows, asked)
        if not config.truth:
            return concluded(folder, rows, None, found, None, notes, about)
        open_truth(folder)
        strong, more = read(storage.path(config.truth))
        said = judged(folder, found, rows, strong)
        return concluded(folder, rows, strong, found, said, [*notes, *more], about)


class Asked(NamedTuple):
    """Settings of a forecast, see `forecast`."""

    shots: int
    form: str
    draws: int
    seed: int


def forecast_once(folder: Path, rows: Rows, asked: Asked) -> dict:
    """The forecast of a folder, made only where there is none and the truth has not been opened.

    Raises:
      UserError: it is of other rows, is damaged, or comes too late.
    """
    path, opened = folder / "forecast.json", (folder / TRUTH).exists()
    if found := _read(path, folder, opened):
        if found["rows_sha256"] != checksum(rows):
            raise UserError(f"{path} was made from other rows than the table has now; use another --workdir")
        return found
    if opened:
        raise UserError(f"{folder}: the truth has been opened, and {path.name} is gone; a forecast now would be none")
    with progress.bar(asked.draws, "bootstrap", "draw") as bar:
        found = forecast(rows, *asked, bar.update)
    found = {"made_by": workdir.facts()["git_commit"], "seed": asked.seed, "draws": asked.draws} | found
    sealed.write_json(path, without_nan(found))
    return sealed.read_json(path)


def _read(path: Path, folder: Path, opened: bool) -> dict | None:
    """The forecast that is there. A damaged one is set aside, to be made again, unless the truth has been opened."""
    if not opened:
        return sealed.unless_damaged(sealed.read_json, path, folder, "it is made again")
    try:
        return sealed.read_json(path)
    except FileNotFoundError:
        return None
    except sealed.Damaged as error:
        fix = "the truth has been opened, so another would be no forecast; put a copy of it back"
        raise sealed.Damaged(error.what, fix) from error


def open_truth(folder: Path) -> str:
    """Records that the truth is looked at from now on; returns the SHA-256 of the forecast that came before."""
    digest = sealed.digest(forecast_bytes(folder))
    sealed.write_json(folder / TRUTH, {"forecast": digest})
    return digest


def judged(folder: Path, found: dict, rows: Rows, strong: Rows) -> dict:
    """How the forecast turned out, also written to `verdict.json`."""
    said = without_nan(verdict(found, rows, strong))
    sealed.write_json(folder / "verdict.json", said)
    return said


def forecast_bytes(folder: Path) -> bytes:
    """The forecast as it is on disk."""
    return (folder / "forecast.json").read_bytes()


def concluded(folder: Path, rows: Rows, strong: Rows | None, found: dict, said: dict | None, notes, about) -> dict:
    """Figures, page and summary; `about` says where the rows are from."""
    figures = emergence_figures.draw(folder / "figures", rows, strong, found, said)
    facts = {
        "experiment": "emergence",
        **about,
        **{name: found[name] for name in ("rows_sha256", "form", "shots", "draws", "seed")},
        "workdir": str(folder),
        "report": str(folder / "report.html"),
        **workdir.facts(),
    }
    notes = [*notes, *found["notes"]]
    write_emergence(folder, found, said, figures, notes, facts)
    kept = ("refused", "elbow", "interval", "interval_from", "law", "percentiles", "diagnostics", "forms")
    others = {
        name: {key: one[key] for key in ("title", "elbow", "why_not")} for name, one in found["baselines"].items()
    }
    summary = {**facts, **{key: found[key] for key in kept}, "baselines": others, "verdict": said, "notes": notes}
    sealed.write_json(folder / "summary.json", summary)
    progress.say(f"\n{headline(found, said)}")
    progress.say(f"Look at {summary['report']}")
    return summary
