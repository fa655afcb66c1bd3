"""Analyze finished runs of any trainer: does pre-memorization accuracy predict test accuracy?"""

import json
import math
import re
from collections.abc import Sequence

import numpy as np
from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis import agreement, calibration, robustness, study, threshold
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import Threshold
from premem_jax.report import drawing, study_figures
from premem_jax.report.study_page import headline, write_study
from premem_jax.running import progress, storage, workdir
from premem_jax.running.atomic import write_text
from premem_jax.running.lease import opened


def run(config, folder: Path) -> dict:
    """Reads the runs at `config.traces` and writes `summary.json`, `figures/` and `report.html` into `folder`.

    Raises:
      UserError: no traces, unusable traces, or a threshold rule that needs data these runs lack.
    """
    keys.check(config)
    by_task: dict[str, list[Run]] = {}
    for one in read_runs(config.traces, **config.release):
        by_task.setdefault(one.task, []).append(one)
    chosen = {task: study.choose(runs, **config.threshold) for task, runs in by_task.items()}
    with opened(folder, config.to_dict()):
        return studied(config, folder, by_task, chosen)


def studied(config, folder: Path, by_task: dict[str, list[Run]], chosen: dict[str, list[Threshold]]) -> dict:
    """Tables, figures and page of the runs."""
    tasks, figures = {}, {}
    with progress.bar(2 * len(by_task), "study", "part") as bar:
        for task, runs in by_task.items():
            tasks[task] = study_task(runs, chosen[task], config)
            bar.update()
            name = f"{len(figures) + 1}_{drawing.shown(task)}" if len(by_task) > 1 else drawing.shown(task)
            figures[task] = draw(runs, chosen[task], tasks[task], folder / "figures", name)
            bar.update()

    summary = {
        "experiment": config.experiment,
        "traces": str(storage.path(config.traces)),
        "choices": {**config.release.to_dict(), "threshold": config.threshold.to_dict(), "draws": config.draws},
        "tasks": tasks,
        "workdir": str(folder),
        "report": str(folder / "report.html"),
        **workdir.facts(),
    }
    flat = {name: value for name, value in summary.items() if not isinstance(value, dict)}
    write_study(folder, tasks, figures, flat | {f"choice {k}": v for k, v in summary["choices"].items()})
    write_text(folder / "summary.json", json.dumps(without_nan(summary), indent=2, allow_nan=False) + "\n")
    for task, result in tasks.items():
        progress.say(f"\n{drawing.shown(task)}: {headline(result)}")
    progress.say(f"Look at {summary['report']}")
    return summary


def study_task(runs: Sequence[Run], chosen: Sequence[Threshold], config) -> dict:
    """All results on the runs of one task."""
    sensitivity = calibration.Sensitivity(runs)
    perplexities = [mine.perplexity for mine in chosen]
    every = np.concatenate([np.ravel(perplexity) for perplexity in perplexities])
    return {
        "runs": len(runs),
        "threshold": study.median_perplexity(chosen),
        "threshold_lowest": float(every.min()),
        "threshold_highest": float(every.max()),
        "threshold_rule": "; ".join(dict.fromkeys(mine.rule for mine in chosen)),
        "threshold_name": study.rule_for(runs, config.threshold.rule),
        "threshold_looks_at_test": any(mine.looks_at_test for mine in chosen),
        "threshold_quantile": config.threshold.quantile,
        "predictors": study.predictor_table(runs, chosen, config.draws, config.seed),
        "thresholds": study.threshold_table(runs, chosen, sensitivity),
        "heldout_error": study.heldout_error(runs, config.threshold.quantile, 1 + config.draws // 10, config.seed),
        "sensitivity": {
            "nll": sensitivity.nll.tolist(),
            "r2_identity": sensitivity.r2().tolist(),
            "r2_linear": sensitivity.r2(agreement.r2_linear).tolist(),
        },
        "robustness": robustness.table(runs, perplexities, config.draws, config.seed),
        "run_table": study.run_table(runs, chosen),
        "notes": study.note_table(runs),
    }


def draw(runs: Sequence[Run], chosen: Sequence[Threshold], result: dict, folder: Path, name: str) -> dict[str, Path]:
    """The figures of one task, as far as it has the numbers: kind to PNG, `name` with the kind behind it."""
    paths = {}

    def path(kind: str) -> Path:
        paths[kind] = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}_{kind}.png"
        return paths[kind]

    if result["predictors"]:
        drawing.both(study_figures.scatter_figure, path("scatter"), result["run_table"], result["predictors"])
        drawing.both(study_figures.predictors_figure, path("predictors"), result["predictors"])
    if np.isfinite(result["sensitivity"]["r2_identity"]).any():
        drawing.both(
            study_figures.sensitivity_figure,
            path("sensitivity"),
            *(result[name] for name in ("sensitivity", "thresholds", "heldout_error")),
            quantile=result["threshold_quantile"],
        )
    kept_aside = [threshold.usable(one.heldout_nll) for one in runs]
    at = max(range(len(runs)), key=lambda i: len(kept_aside[i]))
    m, heldout_E = max(kept_aside[at].items(), default=(-1, None))
    shown = runs[at]
    epochs, nll_ME = shown.trace.epochs, shown.train.nll
    train = {f"trained on, epoch {epochs[i]:.3g}": nll_ME[i] for i in sorted({m % len(epochs), len(epochs) - 1})}
    train = {label: nll_E for label, nll_E in train.items() if np.isfinite(nll_E).any()}
    if train:
        title = f"Target likelihood in run {drawing.label(study_figures.short_names([one.name for one in runs])[at])}"
        if heldout_E is not None:
            title += f" (held out: epoch {epochs[m]:.3g})"
        limit = float(chosen[at].nll(len(epochs))[m])
        drawing.both(study_figures.likelihood_figure, path("likelihood"), heldout_E, train, limit, title)
    return paths


def without_nan(tree):
    """Replaces numbers in `tree` that are not finite, which JSON lacks, by None."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
