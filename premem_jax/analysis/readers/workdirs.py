"""Our own runs: folders with a trace and the `config.json` beside it."""

import json

import numpy as np
from etils.epath import Path

from premem_jax.analysis import premem
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import read_trace
from premem_jax.errors import UserError
from premem_jax.running import storage


def find(path: Path) -> list[Path]:
    """The folders of runs at or below `path`, without the failed members of a study."""
    if path.is_file():
        return []
    found = {file.parent for file in storage.files(path) if file.match("step-*.parquet")}
    if path in found:  # the trace folder itself
        return [path.parent]
    runs = {folder.parent for folder in found if folder.name == "trace"}
    return sorted(run for run in runs if not (run / "failed.json").exists())


def read(folders: list[Path]) -> list[Run]:
    """Reads each folder. Runs of one task with different models become separate tasks."""
    configs = [_config(folder / "config.json") for folder in folders]
    names = _names(folders)
    models: dict[str, set] = {}
    for task, model, _ in configs:
        models.setdefault(task, set()).add(model)
    return [
        _read(folder, name, f"{task} {model}" if len(models[task]) > 1 else task, heldout)
        for folder, name, (task, model, heldout) in zip(folders, names, configs, strict=True)
    ]


def _read(folder: Path, name: str, task: str, heldout: str) -> Run:
    trace = read_trace(folder / "trace")
    if "train" not in trace.splits:
        raise UserError(f"{folder}: the trace has no split 'train', it has {', '.join(trace.splits)}.")
    unknown = np.full(len(trace.steps), np.nan)
    test = premem.measured_mean(trace.split("test").accuracy) if "test" in trace.splits else unknown
    skipped = int(np.sum(trace.split("train").skipped))
    notes = (
        f"{skipped} responses were not sampled, since they change nothing at the run's threshold; at lower thresholds "
        "the pre-memorization accuracy of these examples is taken for 0, and may be higher",
    )
    return Run(name, task, trace, test, trace.measures, heldout, notes=trace.notices + (notes if skipped else ()))


def _config(path: Path) -> tuple[str, str, str]:
    """Task and model of a run, and the split of its threshold."""
    try:
        config = json.loads(path.read_text())
        heldout = config.get("threshold", {}).get("split", "heldout")
        found = config["data"]["task"], config["model"]["preset"], heldout
        if not all(isinstance(name, str) for name in found):
            raise TypeError("task, preset and split should be names")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} should tell of which task and model the trace beside it is, and cannot be used ({why}). "
            "Put the run's own back, or bring the trace as a table."
        ) from error


def _names(folders: list[Path]) -> list[str]:
    """The last parts of each path, as many as make the names distinct."""
    for depth in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two folders have the same path")
