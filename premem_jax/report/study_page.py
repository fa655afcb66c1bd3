"""The report of a set of runs, one HTML file: result, figures, tables."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from etils.epath import Path

from premem_jax.analysis import predictors
from premem_jax.analysis.robustness import EDGES
from premem_jax.analysis.study import RULE_TITLES
from premem_jax.report import drawing, next_steps, page
from premem_jax.running import atomic

CAPTIONS = {
    "scatter": "Each point is an evaluation of a run, joined along the run. On the dashed line the predictor, which is "
    "measured on training examples alone, equals the test accuracy.",
    "predictors": "Predictors side by side. The circle asks whether the predictor is the test accuracy, the diamond "
    "only whether a line through it would do. Points along a run depend on each other, so the intervals resample runs.",
    "sensitivity": "How much hangs on the threshold. The curves have one for all runs; the ring of a rule with several "
    "is at their median, its bar from the lowest to the highest. Shaded: where the median lands when it is read off so "
    "many held-out solutions; the fewer they are, the less it is known.",
    "likelihood": "How likely the model finds solutions that it was trained on, and those that it has never seen.",
}


def write_study(
    folder: Path, tasks: Mapping[str, Mapping], figures: Mapping[str, Mapping[str, Path]], facts: Mapping[str, object]
) -> Path:
    """Writes a self-contained `report.html` into `folder`; returns its path.

    Args:
      folder: folder of the results.
      tasks: task name to its part of the summary of `experiments.analyze`.
      figures: task name to the PNGs by name in `CAPTIONS`.
      facts: facts of the whole analysis, name to value, shown in this order.
    """
    parts = [
        {
            "name": drawing.shown(name),
            "headline": headline(task),
            "figures": [drawing.picture(path, CAPTIONS[kind]) for kind, path in figures[name].items()],
            "next_steps": next_steps.of_study(task),
            "tables": _tables(task),
            "notes": [f"{row['note']} ({textwrap.shorten(row['runs'], 2000)})" for row in task["notes"]],
        }
        for name, task in tasks.items()
    ]
    return render(folder, "Does pre-memorization accuracy predict test accuracy?", parts, facts, metric=True)


def render(
    folder: Path, title: str, parts: Sequence[Mapping], facts: Mapping[str, object], *, metric: bool = False
) -> Path:
    """Writes `report.html` of parts {name, headline, figures, tables, notes} into `folder`; returns its path.

    A part may have `next_steps`; with `metric`, the page defines pre-memorization accuracy.
    """
    template = page.environment().get_template("study.html")
    path = folder / "report.html"
    atomic.write_text(path, template.render(title=title, tasks=parts, facts=page.facts(facts), metric=metric))
    return path


def headline(task: Mapping) -> str:
    """The result for one task in two or three sentences."""
    row, naive = task["predictors"].get("pre_memorization_accuracy"), task["predictors"].get("train_accuracy")
    if not row:
        return (
            f"{task['runs']} runs, but no evaluation has test accuracy, samples and likelihoods at once: there is "
            "nothing to compare."
        )
    where = f"Over {row['n_points']} evaluations of {row['n_runs']} {'run' if row['n_runs'] == 1 else 'runs'}"
    if not _known(row["r2_identity"]):
        return f"{where}, test accuracy is always the same: no predictor of it can be told from another."
    low, high = row["interval"]["r2_identity"]
    interval = f" (95 % interval over runs {low:.2f} to {high:.2f})" if _known(low) else ""
    text = (
        f"{where}, pre-memorization accuracy follows test accuracy with R² = {row['r2_identity']:.4f} against y = x"
        f"{interval} and is off by {100 * row['mae']:.1f} points on average"
    )
    if naive:
        text += f"; train accuracy has R² = {number(naive['r2_identity'], '.2f')}"
    low, high = task["threshold_lowest"], task["threshold_highest"]
    below = f"{low:.4f}" if low == high else f"{low:.4f} to {high:.4f}"
    text += f". An example counts as memorized below perplexity {below}, by this rule: {task['threshold_rule']}."
    for rule in task["thresholds"]:
        if (rule["rule"], rule["quantile"]) == ("heldout_quantile", 0.01) and task["threshold_name"] != rule["rule"]:
            text += (
                " With the rule that looks at no accuracy, the 0.01 quantile of held-out likelihoods at each "
                f"evaluation (perplexity {rule['threshold']:.4f}, their median), R² is "
                f"{number(rule['r2_identity'], '.4f')}."
            )
    return text


def _tables(task: Mapping) -> list[dict]:
    return [
        table
        for table in (_predictors(task), _robustness(task), _rules(task), _errors(task), _runs(task))
        if table["rows"]
    ]


def _predictors(task: Mapping) -> dict:
    rows = []
    for name, row in task["predictors"].items():
        final, within = row["final"], row["within_size"]
        key = "r2_identity" if row["r2_identity"] is not None else "r2_linear"
        low, high = row["without_a_run"]
        rows.append(
            [
                cell(drawing.shown(predictors.of(name).title)),
                _with_interval(row, "r2_identity"),
                _with_interval(row, "r2_linear"),
                _with_interval(row, "mae"),
                _with_interval(row, "rank_correlation"),
                cell(number(row["r2_left_out"], ".3f")),
                cell(f"{number(low, '.3f')} … {number(high, '.3f')}"),
                _with_interval(final, key),
                cell(number(within[key], ".3f")),
            ]
        )
    return {
        "title": "Predictors side by side",
        "note": "R² against y = x where the predictor is an accuracy; R² of the best line; mean absolute error; "
        "Spearman's rank correlation; R² of a line fitted on the other runs; the range of R² when any one run is left "
        "out; R² at the last evaluations; R² within equal training-set size (sizes with two runs or more, both "
        "centered). The last three are of y = x for accuracies, of a line for the others. Small: 95 % intervals over "
        "runs.",
        "columns": [
            "predictor",
            "R² (y = x)",
            "R² (line)",
            "MAE",
            "rank corr.",
            "line of other runs",
            "without a run",
            "last only",
            "equal size",
        ],
        "rows": rows,
        "marked": [list(task["predictors"]).index("pre_memorization_accuracy")] if rows else [],
    }


def _rules(task: Mapping) -> dict:
    rows, marked = [], []
    for row in task["thresholds"]:
        quantile = "" if row["quantile"] is None else f" ({100 * row['quantile']:g} %)"
        if row["rule"] == task["threshold_name"] and row["quantile"] in (None, task["threshold_quantile"]):
            marked.append(len(rows))
        spread = f"{row['nll_lowest']:.4f}"
        if row["nll_highest"] > row["nll_lowest"]:
            spread += f" … {row['nll_highest']:.4f}"
        rows.append(
            [
                cell(RULE_TITLES[row["rule"]] + quantile),
                cell(spread),
                cell(number(row["r2_identity"], ".4f")),
                cell(number(row["r2_linear"], ".4f")),
                cell(number(row["mae"], ".4f")),
                cell(f"{row['n_points']} / {row['n_runs']}"),
                cell(number(row["behind_tuned"], ".4f")),
                cell("yes" if row["looks_at_test"] else ""),
            ]
        )
    return {
        "title": "Rules for the threshold",
        "note": "Of pre-memorization accuracy. Behind the best: how far R² falls short of the best that any one "
        "threshold reaches on the same points.",
        "columns": [
            "rule",
            "mean NLL",
            "R² (y = x)",
            "R² (line)",
            "MAE",
            "points / runs",
            "behind the best",
            "looks at test accuracy",
        ],
        "rows": rows,
        "marked": marked,
    }


def _errors(task: Mapping) -> dict:
    rows = [
        [
            cell(f"{row['examples']:,}"),
            cell(f"{row['nll']:.4f}"),
            cell(f"{row['relative_error']:.0%}"),
            cell("{:.4f} … {:.4f}".format(*row["nll_interval"])),
            cell(number(row["r2_identity_median"], ".3f")),
            cell(f"{number(row['r2_identity_interval'][0], '.3f')} … {number(row['r2_identity_interval'][1], '.3f')}"),
        ]
        for row in task["heldout_error"]
    ]
    return {
        "title": "How many held-out solutions the threshold needs",
        "note": "Thresholds by the default rule from so many held-out solutions of each run, drawn again and again "
        "with replacement: their median over evaluations, the standard error of one of them relative to its value, and "
        "R² with them.",
        "columns": [
            "held out",
            "mean NLL",
            "relative error",
            "95 % of draws",
            "median R²",
            "R², 95 % of draws",
        ],
        "rows": rows,
        "marked": [],
    }


def _robustness(task: Mapping) -> dict:
    rows = []
    for row in task["robustness"]:
        cells = [cell(drawing.shown(row["run"])), cell(row["asked"])]
        for here in row["bins"]:
            low, high = here["interval"]
            interval = f"{low:.3f} … {high:.3f}, n = {here['examples']:,}" if _known(low) else ""
            cells.append(cell(number(here["accuracy"], ".3f"), interval))
        rows.append(cells)
    return {
        "title": "Solved otherwise, too?",
        "note": "Accuracy on training examples when the question comes in other words, or when the response must begin "
        "with words that the reference solution does not begin with, by pre-memorization accuracy (each column from "
        "its value up to the next, the last one exactly 1), at the last evaluation. Small: 95 % intervals over "
        "examples.",
        "columns": ["run", "asked", *(f"{edge:g}" for edge in EDGES)],
        "rows": rows,
        "marked": [],
    }


def _runs(task: Mapping) -> dict:
    keys = ("train_nll", "fraction_memorized", "train_accuracy", "pre_memorization_accuracy", "test_accuracy")
    rows = [
        [
            cell(drawing.shown(run["run"])),
            cell(str(run["evaluations"])),
            cell(f"{run['train_examples']:,}"),
            cell(f"{run['threshold']:.4f}"),
            *(cell(number(run[key][-1], ".4f")) for key in keys),
        ]
        for run in task["run_table"]
    ]
    return {
        "title": "Runs, at their last evaluation",
        "note": "Unweighted means over the examples trained on; NLL in nats per target token.",
        "columns": [
            "run",
            "evaluations",
            "examples",
            "threshold (perplexity)",
            "train NLL",
            "memorized",
            "train",
            "pre-memorization",
            "test",
        ],
        "rows": rows,
        "marked": [],
    }


def cell(text: str, interval: str = "") -> dict:
    return {"text": text, "interval": interval}


def _with_interval(row: Mapping, name: str) -> dict:
    low, high = row["interval"].get(name, (None, None))
    return cell(number(row[name], ".3f"), f"{low:.3f} … {high:.3f}" if _known(low) and _known(high) else "")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, form: str) -> str:
    return format(value, form) if _known(value) else "–"
