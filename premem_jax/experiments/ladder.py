"""A ladder of emergence, end to end: weak models are finetuned, the forecast is sealed, strong models are looked at.

Members of the study without needs are the weak sizes, from which the forecast is made. The strong ones need all of
them: before the first strong model is begun, the forecast is written to `folder/forecast/`, and its SHA-256 stands in
the config of each. There are the tables too, `weak.jsonl` and `strong.jsonl`, as `configs/emergence.py` reads them.

With `study.mixes`, the models of several mixes of pretraining data are compared at a common held-out loss. Each mix has
its own forecast in `folder/forecast/MIX/`, all sealed before the first strong model, and a page says which is earlier.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis.emergence_choice import compared
from premem_jax.analysis.emergence_elbow import elbow
from premem_jax.analysis.emergence_gates import alike
from premem_jax.analysis.emergence_table import Rows, read
from premem_jax.experiments import emergence, studies
from premem_jax.members import members_of
from premem_jax.report.choice_page import headline, write_choice
from premem_jax.running import progress, sealed, workdir
from premem_jax.running.atomic import write_text

COLUMNS = dict(rungs="d", loss=".3f", fewshot_accuracy=".1%", finetuned_accuracy=".1%", seconds_total=".0f")


def run(config, folder: Path) -> dict | None:
    """Makes or continues the models of `config.study`, the forecast between weak and strong ones, and the verdict.

    Raises:
      UserError: as the members do; a forecast that comes too late.
    """
    keys.check(config)
    give = lambda member, earlier, files: predict(config, folder / "forecast", earlier, mix_of(config, member.name))
    end = lambda rows, failed: conclude(config, folder / "forecast", rows)
    return studies.run(config, folder, columns=COLUMNS, give=give, conclude=end)


def mix_of(config, name: str) -> str:
    """The mix of a member; empty where none are compared."""
    return name.partition(".")[0] if config.study.mixes else ""


def predict(config, folder: Path, earlier: Mapping[str, Path], mix: str = "") -> dict[str, str]:
    """Seals the forecast of each mix from its weak models, unless it is there.

    A strong model is given the SHA-256 of the forecast of its mix. Two launches that begin strong models at once make
    the same bytes.
    """
    for one in config.study.mixes or ("",):
        runs = [run for name, run in earlier.items() if mix_of(config, name) == one]
        weak, _ = tabled(folder / one / "weak.jsonl", [sealed.read_json(run / "summary.json") for run in runs])
        emergence.forecast_once(folder / one, weak, asked(config))
    return {"forecast": {one: emergence.open_truth(folder / one) for one in config.study.mixes or ("",)}[mix]}


def conclude(config, folder: Path, rows: Mapping[str, Mapping]) -> dict:
    """The verdict, the gates and the page; of each mix, and of the choice between them, where mixes are compared."""
    if not config.study.mixes:
        return judged(config, folder, rows)
    of = lambda mix: {name: row for name, row in rows.items() if mix_of(config, name) == mix}
    each = {mix: judged(config, folder / mix, of(mix)) for mix in config.study.mixes}
    found = {mix: sealed.read_json(folder / mix / "forecast.json") for mix in each}
    said = {mix: one["verdict"] for mix, one in each.items() if one["verdict"]}
    pairs = compared(found, said, {mix: one["gates"]["before"] for mix, one in each.items()})
    for pair in pairs:
        progress.say(headline(pair))
    page = write_choice(folder, pairs, {"mixes": ", ".join(each), "workdir": str(folder), **workdir.facts()})
    return {"mixes": each, "choice": pairs, "report": str(page)}


def judged(config, folder: Path, rows: Mapping[str, Mapping]) -> dict:
    """The verdict, the gates and the page of some members, of one mix."""
    needs = {name: bool(member.needs) for name, member in members_of(config).items()}
    of = lambda strong: [row for name, row in rows.items() if needs[name] == strong]
    weak, notes = tabled(folder / "weak.jsonl", of(False))
    found = emergence.forecast_once(folder, weak, asked(config))
    strong, said, checked = None, None, [gates(weak)]
    if of(True):
        strong, more = tabled(folder / "strong.jsonl", of(True))
        said, notes = emergence.judged(folder, found, weak, strong), [*notes, *more]
        both = Rows(*map(np.concatenate, zip(weak, strong, strict=True)))
        checked.append(gates(both.fewshot))
    about = {"table": str(folder / "weak.jsonl"), "truth": str(folder / "strong.jsonl") if strong else ""}
    notes = [*notes, *(line for found in checked for line in found["notes"])]
    result = emergence.concluded(folder, weak, strong, found, said, notes, about)
    kept = ("refused", "elbow", "interval", "interval_from", "verdict", "report")
    return {key: result[key] for key in kept} | {"gates": dict(zip(("before", "after"), checked, strict=False))}


def asked(config) -> emergence.Asked:
    """The settings of the forecast."""
    return emergence.Asked(config.evaluation.shots, config.study.form, config.study.draws, config.seed)


def tabled(path: Path, summaries: Sequence[Mapping]) -> tuple[Rows, list[str]]:
    """Writes the rows of some members, unless they are there, and reads them back with notes on what was left out."""
    text = "".join(json.dumps(row) + "\n" for summary in summaries for row in summary["rows"])
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
    return read(path)


def gates(rows: Rows) -> dict:
    """Whether rows are as the law presumes: few-shot accuracy bends, and sizes agree at equal loss."""
    few = rows.fewshot
    curve = elbow(few.loss, few.accuracy, few.items)
    sizes = np.array([int(name.partition("@")[0]) for name in rows.model])  # width, or parameters
    same = alike(rows, sizes)
    amounts = "few-shot" if not len(rows.finetuned.loss) else "finetuned and few-shot"
    notes = ["few-shot accuracy " + ("bends" if curve and curve.bends else "has no elbow that beats line and constant")]
    if same:
        notes.append(
            f"at equal loss the larger model is {same.difference:+.3f} more accurate ({amounts}, {same.points} points, "
            f"standard error of a point {same.standard_error:.3f}); {same.share:.0%} within two standard errors"
        )
    bends = {"bends": bool(curve and curve.bends), "aic": curve.aic if curve else None}
    return bends | {"sizes": same and same._asdict() | {"holds": same.holds}, "notes": notes}
