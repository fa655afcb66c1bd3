"""One HTML file about a forecast of emergence."""

from collections.abc import Mapping, Sequence

from etils.epath import Path

from premem_jax.report import drawing
from premem_jax.report.study_page import cell, number, render

TITLE = "Where will few-shot ability appear?"
CAPTIONS = {
    "accuracy": "Each point is a model finetuned on one subset, at the loss that it had before. With more data the "
    "curve leaves the floor earlier, at a higher loss.",
    "law": "The law through the elbows, and its value where finetuning data is as scarce as examples in a prompt. The "
    "grey points are fitted to each amount alone, and take no part in the law.",
    "posterior": "How probable it is that the elbow lies below a loss. The bootstrap draws whole subsets, the "
    "posterior takes every row as independent.",
    "forecast": "Few-shot accuracy. What is right of the weak models was written down before the strong ones were "
    "looked at.",
}


def write_emergence(
    folder: Path,
    found: Mapping,
    said: Mapping | None,
    figures: Mapping[str, Path],
    notes: Sequence[str],
    facts: Mapping[str, object],
) -> Path:
    """Writes a self-contained `report.html` into `folder`; returns its path.

    Args:
      found: the forecast.
      said: its verdict, where the truth is known.
      figures: PNGs by the names of `CAPTIONS`.
      notes: what was odd about the rows.
      facts: of the whole, name to value.
    """
    part = {
        "name": TITLE,
        "headline": headline(found, said),
        "figures": [drawing.picture(path, CAPTIONS[name]) for name, path in figures.items()],
        "tables": [table for table in (_methods(found, said), _law(found), _forms(found)) if table["rows"]],
        "notes": list(notes),
    }
    return render(folder, TITLE, [part], facts)


def headline(found: Mapping, said: Mapping | None) -> str:
    """The forecast, or why there is none, and how it turned out."""
    rows = f"From {found['rows']} rows of {found['models']} models with losses of {_losses(found)}"
    if found["refused"]:
        text = f"{rows}, no forecast: {found['refused']}."
    else:
        low, high = found["interval"]
        text = (
            f"{rows}, few-shot ability is to appear at a pretraining loss of {found['elbow']:.3f} nats (90 % interval "
            f"{low:.3f} to {high:.3f}, {found['interval_from']})."
        )
    if said is None:
        return text
    if said["elbow"] is None:
        return f"{text} The stronger models do not leave the floor either."
    text += f" It did at {said['elbow']:.3f}"
    if not said["bends"]:
        text += ", though a line or a constant describes the few-shot curve better than an elbow"
    if (error := said["scores"]["emergence_law"]["error"]) is not None:
        share = said["scores"]["emergence_law"]["error_share"]
        inside = "inside" if said["covered"] else "outside"
        text += f": off by {error:+.3f} nats, {abs(share):.0%} of the range of losses, {inside} the interval"
    return f"{text}."


def _losses(found: Mapping) -> str:
    return "{:.3f} to {:.3f}".format(*found["losses"])


def _methods(found: Mapping, said: Mapping | None) -> dict:
    scores = said["scores"] if said else {}
    titles = {"emergence_law": "emergence law"} | {name: one["title"] for name, one in found["baselines"].items()}
    if "two_step" in scores:
        titles["two_step"] = "FLOPs to loss to accuracy"
    rows = []
    for name, title in titles.items():
        score = scores.get(name, {})
        own = {"elbow": found["elbow"]} if name == "emergence_law" else found["baselines"].get(name, {})
        rows.append(
            [
                cell(title),
                cell(number(score.get("elbow", own.get("elbow")), ".3f")),
                cell(number(score.get("error"), "+.3f")),
                cell(number(score.get("error_share"), "+.0%")),
                cell(number(score.get("accuracy_error"), ".3f")),
                cell(own.get("why_not", "") or (found["refused"] or "" if name == "emergence_law" else "")),
            ]
        )
    return {
        "title": "The law beside simpler answers",
        "note": "All from the same rows. Elbow in nats; its error against the truth, in nats and as a share of the "
        "range of losses; root mean square error of the few-shot accuracies of the stronger models.",
        "columns": ["method", "elbow", "error", "share", "accuracy off by", "why there is none"],
        "rows": rows,
        "marked": [0],
    }


def _law(found: Mapping) -> dict:
    names = {
        "elbow": "elbow at the few-shot limit",
        "elbow_largest": "elbow at the largest amount",
        "alpha": "alpha",
        "k": "k",
        "c": "C",
        "slope": "slope (accuracy per nat)",
        "floor": "floor",
        "fewshot_floor": "few-shot floor",
        "noise": "noise of a row",
    }
    rows = (
        [[cell(title), cell(number(found["law"][name], ".4g"))] for name, title in names.items()]
        if found["law"]
        else []
    )
    return {
        "title": "The law",
        "note": "Maximum likelihood. k and C by themselves say little: pairs with another alpha give like elbows.",
        "columns": ["", "value"],
        "rows": rows,
        "marked": [],
    }


def _forms(found: Mapping) -> dict:
    rows = [
        [cell(form.replace("_", " ")), *(cell(number(value, ".3f")) for value in scores.values())]
        for form, scores in (found["forms"] or {}).items()
    ]
    return {
        "title": "Which form",
        "note": "Mean log-likelihood of rows that were left out of the fit; higher is better.",
        "columns": ["form", "smallest amount left out", "strongest model left out"],
        "rows": rows,
        "marked": [],
    }
