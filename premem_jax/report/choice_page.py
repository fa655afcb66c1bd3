"""One HTML file about a choice between families of models: which is to acquire a skill earlier."""

from collections.abc import Mapping, Sequence

from etils.epath import Path

from premem_jax.report.study_page import cell, number, render

TITLE = "Which models acquire the skill earlier?"
TRUST = (
    "Trust the order only if nothing above speaks against it: both forecasts are there, their elbows differ by more "
    "than their errors, losses are on one text, and models of a family agree at equal loss whatever their size.",
    "An elbow at a higher loss says nothing about cost: a family may come to that loss later.",
    "If simpler answers give the same order, the law was not needed for it.",
)


def write_choice(folder: Path, pairs: Sequence[Mapping], facts: Mapping[str, object]) -> Path:
    """Writes a self-contained `report.html` about what `emergence_choice.compared` returned; returns its path."""
    parts = [
        {
            "name": " or ".join(pair["families"]),
            "headline": headline(pair),
            "figures": [],
            "tables": [_methods(pair)],
            "notes": [*pair["doubts"], *TRUST],
        }
        for pair in pairs
    ]
    return render(folder, TITLE, parts, facts)


def headline(pair: Mapping) -> str:
    """Who is to be earlier, how sure that is, and who was."""
    first, second = pair["families"]
    earlier = lambda value: first if value > 0 else second
    if pair["difference"] is None:
        text = f"{first} or {second}: no forecast of the order."
    else:
        trust = "not to be trusted" if pair["doubts"] else "to be trusted"
        text = (
            f"{earlier(pair['difference'])} is to acquire the skill earlier, by {abs(pair['difference']):.3f} nats "
            f"(standard error {pair['error']:.3f}); {trust}."
        )
    if pair["truth"] is None:
        return text
    return f"{text} It was {earlier(pair['truth'])}, by {abs(pair['truth']):.3f} nats."


def _methods(pair: Mapping) -> dict:
    law = {"title": "emergence law", "difference": pair["difference"], "right": pair["right"]}
    right = {None: "–", True: "yes", False: "no"}
    rows = [
        [cell(one["title"]), cell(number(one["difference"], "+.3f")), cell(right[one["right"]])]
        for one in (law, *pair["others"].values())
        if one["difference"] is not None or one is law
    ]
    return {
        "title": "The order by the law and by simpler answers",
        "note": "Elbow of {} minus that of {}, in nats of the common held-out loss.".format(*pair["families"]),
        "columns": ["method", "difference", "right order"],
        "rows": rows,
        "marked": [0],
    }
