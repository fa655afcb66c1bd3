"""Finetune many times from one base model, and analyze the runs together: what predicts their test accuracy?"""

from collections.abc import Mapping

from etils.epath import Path

from premem_jax import config as defaults
from premem_jax import keys
from premem_jax.analysis.coverage import coverage, sentence
from premem_jax.experiments import analyze, studies
from premem_jax.running import progress

COLUMNS = dict(train_accuracy=".1%", estimate=".1%", test_accuracy=".1%", threshold=".3f")


def run(config, folder: Path) -> dict | None:
    """Runs or continues the finetunes of `config.study` in `folder/runs`, then analyzes them in `folder/study`.

    Raises:
      UserError: as the finetunes and the analysis do, or runs with identical settings.
    """
    keys.check(config)
    return studies.run(config, folder, columns=COLUMNS, conclude=lambda rows, failed: conclude(config, folder, rows))


def conclude(config, folder: Path, rows: Mapping[str, Mapping]) -> dict:
    """The analysis of the runs, and in how many the estimate agrees with the test accuracy; `rows` are summaries."""
    asked = defaults.analyze()
    asked.update(traces=str(folder / "runs"), cache=config.cache, seed=config.seed)
    asked.threshold.quantile = config.threshold.quantile
    if config.threshold.rule == "given":
        asked.threshold.update(rule="given", perplexity=config.threshold.perplexity)
    found = analyze.without_nan(analyze.run(asked, folder / "study"))
    covered = coverage(rows)
    progress.say(sentence(covered))
    return {"tasks": found["tasks"], "report": found["report"], "coverage": covered}
