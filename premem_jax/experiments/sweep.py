"""Finetune many times from one base, and study the runs together: what predicts their test accuracy?"""

import json
import logging

from etils.epath import Path
from ml_collections import ConfigDict

from premem_jax import config as defaults
from premem_jax import processes, progress, workdir
from premem_jax.atomic import write_text
from premem_jax.errors import UserError
from premem_jax.experiments import analyze, finetune
from premem_jax.lease import lease
from premem_jax.training.loop import NonFiniteLoss

log = logging.getLogger(__name__)

COLUMNS = ("train_accuracy", "pre_memorization_accuracy", "test_accuracy")


def run(config, folder: Path) -> dict:
    """Runs or continues the finetunes of `config.sweep.runs` in `folder/runs`, then studies them in `folder/study`.

    Each run has a folder of its own, as if it had been started alone; finished ones are not done again. A run whose
    loss stops being finite is left out of the study, and named.

    Raises:
      UserError: as the finetunes and the study do, or runs that cannot be told apart.
    """
    members = {name: member(config, changes) for name, changes in config.sweep.runs}
    if not members or len(members) < len(config.sweep.runs):
        raise UserError(f"sweep.runs: there must be some, with names of their own ({', '.join(members) or 'none'})")
    workdir.claim(folder, config.to_dict())
    with lease(folder):
        results, failed = finish_all(members, folder)
        return processes.once(lambda: conclude(config, folder, results, failed))


def finish_all(members: dict[str, ConfigDict], folder: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """The summaries of the runs, which are made or continued one by one, and what is wrong with those that failed."""
    results, failed = {}, {}
    width = max(map(len, members))
    with progress.bar(len(members), "sweep", "run") as bar:
        for name, settings in members.items():
            try:
                results[name] = finish(settings, folder / "runs" / name)
                values = [results[name][key] for key in COLUMNS]
                cells = "  ".join(f"{'–' if value is None else f'{value:.1%}':>18}" for value in values)
                if len(results) == 1:
                    progress.say("  ".join([" " * width, *(f"{key.replace('_', ' ')[-18:]:>18}" for key in COLUMNS)]))
                progress.say(f"{name:<{width}}  {cells}")
            except NonFiniteLoss as error:
                failed[name] = str(error)
                log.warning("run %s is left out: %s", name, error)
            bar.update()
    return results, failed


def conclude(config, folder: Path, results: dict[str, dict], failed: dict[str, str]) -> dict:
    """The study of the runs, and `summary.json`."""
    study = defaults.analyze()
    study.update(traces=str(folder / "runs"), cache=config.cache, seed=config.seed)
    study.threshold.quantile = config.threshold.quantile
    if config.threshold.rule == "given":
        study.threshold.update(rule="given", perplexity=config.threshold.perplexity)
    found = analyze.run(study, folder / "study")
    summary = {
        "experiment": config.experiment,
        "tasks": found["tasks"],
        "runs": {name: {key: result[key] for key in (*COLUMNS, "threshold")} for name, result in results.items()},
        "failed": failed,
        "seconds_of_runs": round(sum(result["seconds_total"] for result in results.values()), 3),
        "workdir": str(folder),
        "report": found["report"],
        **workdir.facts(),
    }
    write_text(folder / "summary.json", json.dumps(analyze.without_nan(summary), indent=2, allow_nan=False) + "\n")
    return summary


def member(config, changes) -> ConfigDict:
    """The config of one run: that of the sweep with some settings changed, given as pairs of key and value."""
    c = ConfigDict(config.to_dict())
    del c["sweep"]
    c.experiment = "finetune"
    c.update_from_flattened_dict(dict(changes))
    return c


def finish(config, folder: Path) -> dict:
    """The summary of a run, which is made or continued unless it is there."""
    path = folder / "summary.json"
    there = processes.once(lambda: json.loads(path.read_text()) if path.exists() else None)
    if there:
        return there
    with progress.quiet():
        return finetune.run(config, folder)
