"""Audit finished runs of any trainer, example by example: difficulty, suspect labels, what to train on next."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis import audit, study
from premem_jax.analysis.audit_columns import COLUMNS
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import Threshold
from premem_jax.data.sources import fields, jsonl
from premem_jax.errors import UserError
from premem_jax.experiments.analyze import without_nan
from premem_jax.report import audit_page, drawing, study_page
from premem_jax.running import progress, sealed, storage, workdir
from premem_jax.running.atomic import write_text
from premem_jax.running.lease import opened

HARDEST = "hardest"  # the lowest values of this column:
OF_HARDEST = "unmemorized_accuracy"
MAPS = 4  # runs whose data map is drawn


def run(config, folder: Path) -> dict:
    """Reads the runs at `config.traces`; writes `audit.parquet`, `suspects.parquet`, `selected.jsonl` and a page.

    Raises:
      UserError: no usable traces, runs of several tasks, or no texts to select from.
    """
    keys.check(config)
    runs = read_runs(config.traces, **config.release)
    if len(tasks := {one.task for one in runs}) > 1:
        raise UserError(
            f"traces={config.traces!r}: runs of several tasks ({', '.join(sorted(tasks))}); name those of one"
        )
    chosen = study.choose(runs, **config.threshold)
    found = Found(runs, chosen, config.seed)
    rows = rows_of(config) if config.select else {}
    lines = picked(select(found.columns, config.select, config.share), rows) if config.select else ()
    with opened(folder, config.to_dict()):
        return written(config, folder, found, rows, lines)


class Found:
    """What is told about the examples: by run, over all runs, and the order of suspicion."""

    def __init__(self, runs: Sequence[Run], chosen: Sequence[Threshold], seed: int):
        self.runs, self.chosen = runs, chosen
        self.by_run = [audit.audit(one.trace, mine, seed=seed) for one, mine in zip(runs, chosen, strict=True)]
        self.joined = {name: np.concatenate([one[name] for one in self.by_run]) for name in self.by_run[0]}
        self.pooled = audit.pooled(list(zip(runs, chosen, strict=True)))
        means = {name: mean_by_example(self.joined["example"], self.joined[name]) for name in COLUMNS}
        self.columns = means | self.pooled
        self.order = audit.ranked(self.pooled["suspicion"], means["first_nll"])
        pairs = zip(runs, self.by_run, strict=True)
        self.summaries = {one.name: audit.summary(columns, one.heldout_nll) for one, columns in pairs}


def written(config, folder: Path, found: Found, rows: Mapping[int, dict], lines: Sequence[dict]) -> dict:
    """Tables, page, and the rows that are selected."""
    runs, pooled, order = found.runs, found.pooled, found.order
    counts = [len(columns["example"]) for columns in found.by_run]
    names = np.repeat(np.array([one.name for one in runs], object), counts)  # not of the width of the longest
    audit_page.write_table(folder / "audit.parquet", {"run": names, **found.joined})
    audit_page.write_table(folder / "suspects.parquet", {name: values[order] for name, values in pooled.items()})
    if len((memorized := audit.memorization(runs))["example"]):
        audit_page.write_table(folder / "memorization.parquet", memorized)
    if config.select:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        write_text(folder / "selected.jsonl", text)
    summary = {
        "experiment": config.experiment,
        "traces": str(storage.path(config.traces)),
        "task": runs[0].task,
        "threshold_rule": "; ".join(dict.fromkeys(mine.rule for mine in found.chosen)),
        "threshold_looks_at_test": any(mine.looks_at_test for mine in found.chosen),
        "runs": found.summaries,
        "suspects": pooled["example"][order][:100].tolist(),
        "selected": len(lines),
        "workdir": str(folder),
        "report": str(folder / "report.html"),
        **workdir.facts(),
    }
    write_page(folder, found, rows, summary)
    sealed.write_json(folder / "summary.json", without_nan(summary))
    progress.say(f"{len(runs)} runs, {len(order):,} training examples; the most suspect labels:")
    progress.say(", ".join(map(str, summary["suspects"][:10])))
    if config.select:
        progress.say(f"{len(lines):,} examples are in {folder / 'selected.jsonl'}")
    progress.say(f"Look at {summary['report']}")
    return summary


def select(columns: Mapping[str, np.ndarray], name: str, share: float) -> np.ndarray:
    """Ids of the share of examples with the lowest values of a column, or the highest if its name begins with `-`.

    `hardest` are those that were solved least while not memorized. Unknown values are never taken; equals go by their
    first NLL, the higher the harder.
    """
    sign, name = (1, name[1:]) if name.startswith("-") else (-1, name)
    values = columns[OF_HARDEST if name == HARDEST else name].astype(np.float64)
    order = audit.ranked(sign * values, columns["first_nll"])
    return np.sort(columns["example"][order[: min(np.isfinite(values).sum(), round(share * len(values)))]])


def mean_by_example(example: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean over runs of each distinct example; NaN where all are unknown."""
    ids, place = np.unique(example, return_inverse=True)
    known = np.isfinite(values.astype(np.float64))
    count = np.bincount(place[known], minlength=len(ids))
    total = np.bincount(place[known], values[known].astype(np.float64), minlength=len(ids))
    return np.divide(total, count, out=np.full(len(ids), np.nan), where=count > 0)


def rows_of(config) -> dict[int, dict]:
    """The rows to select from, by example id: those of `config.rows`, or of the `examples.jsonl` of the runs.

    Raises:
      UserError: neither is there, a row is none, or the runs have different training examples.
    """
    if config.rows:
        try:
            body = storage.path(config.rows).read_bytes()
        except OSError as error:
            raise UserError(f"rows={config.rows}: cannot be read ({error.strerror or error})") from error
        return {id: fields(where, text, ()) for id, (where, text) in enumerate(jsonl(body, config.rows).items)}
    files = [file for file in storage.files(storage.path(config.traces)) if file.name == "examples.jsonl"]
    found: dict[int, dict] = {}
    for file in files:
        for where, text in jsonl(file.read_bytes(), str(file)).items:
            row = fields(where, text, ("split", "example", "prompt", "reference"))
            if row["split"] == "train":
                mine = {"prompt": row["prompt"], "target": f" {row['reference']}"}
                if found.setdefault(row["example"], mine) != mine:
                    raise UserError(f"{where}: another run has another example {row['example']}; name the rows=FILE")
    if not found:
        raise UserError(
            f"select={config.select!r}: the runs have no texts; name the file of all rows in order, rows=FILE"
        )
    return found


def picked(ids: np.ndarray, rows: Mapping[int, dict]) -> list[dict]:
    """The rows with these ids. Raises UserError for one that there is not."""
    if lacking := [int(id) for id in ids if int(id) not in rows]:
        raise UserError(f"rows: there is no row {lacking[0]} (they count from 0); name the file that was trained on")
    return [rows[int(id)] for id in ids]


def write_page(folder: Path, found: Found, rows: Mapping[int, dict], summary: Mapping) -> None:
    """`report.html`: the data maps of the first runs, the most suspect labels, and a line on each run."""
    figures = []
    for one, columns in list(zip(found.runs, found.by_run, strict=True))[:MAPS]:
        path = folder / "figures" / f"map-{len(figures)}.png"
        drawing.both(audit_page.map_figure, path, columns)
        figures.append(drawing.picture(path, f"{drawing.shown(one.name)}. {audit_page.MAP_CAPTION}"))
    texts = {id: [value for value in row.values() if isinstance(value, str)][:2] for id, row in rows.items()}
    suspects = {
        "title": "Suspect labels",
        "note": audit_page.NOTE,
        "columns": audit_page.SUSPECT_COLUMNS,
        "rows": [[study_page.cell(text) for text in row] for row in audit_page.suspects(found.columns, texts)],
        "marked": [],
    }
    keys_of = {key: key.replace("_", " ") for told in found.summaries.values() for key in told}
    runs = {
        "title": "Runs",
        "note": audit_page.RUNS_NOTE,
        "columns": ["run", *keys_of.values()],
        "rows": [
            [
                study_page.cell(drawing.shown(name)),
                *(study_page.cell(study_page.number(told[key], ",.6g")) for key in keys_of),
            ]
            for name, told in found.summaries.items()
        ],
        "marked": [],
    }
    notes = [f"{row['note']} ({row['runs']})" for row in study.note_table(found.runs)]
    headline = f"{len(found.runs)} runs on {len(found.order):,} training examples."
    parts = [{"name": "", "headline": headline, "figures": figures, "tables": [suspects, runs], "notes": notes}]
    flat = {name: value for name, value in summary.items() if not isinstance(value, dict | list)}
    study_page.render(folder, "What the runs tell about their examples", parts, flat)
