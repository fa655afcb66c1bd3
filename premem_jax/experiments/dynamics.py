"""Arms of preference training, side by side: what became of every type of response, and of the accuracy."""

from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis import arms
from premem_jax.analysis.trace import read_trace
from premem_jax.experiments import studies
from premem_jax.experiments.analyze import without_nan
from premem_jax.members import members_of
from premem_jax.running import progress

COLUMNS = dict(
    change_chosen=".1f", change_rejected=".1f", change_other=".1f", change_greedy=".1f", margin=".1f",
    reward_accuracy=".1%", test_accuracy=".1%", repeated_4grams=".1%", copied_after=".1%", ches_correlation=".2f",
    on_policy_share=".1%",
)  # fmt: skip


def run(config, folder: Path) -> dict | None:
    """Runs or continues the arms of `config.study` in `folder/runs`, then draws them together in `folder/study`.

    Raises:
      UserError: as the runs do.
    """
    keys.check(config)
    return studies.run(config, folder, columns=COLUMNS, conclude=lambda rows, failed: conclude(config, folder, rows))


def conclude(config, folder: Path, rows: dict[str, dict]) -> dict:
    """The page of the arms, and where it is."""
    from premem_jax.report.dynamics_page import write_page  # matplotlib

    names = [name for name in members_of(config) if name in rows]
    values = {name: {key: rows[name].get(key) for key in COLUMNS} for name in names}
    known = [key for key in COLUMNS if any(row[key] is not None for row in values.values())]
    first = {arm: min(seeds) for arm, seeds in arms.by_arm(values).items()}
    drawn = [name for name in names if first[arms.arm_of(name)[0]] == arms.arm_of(name)[1]]
    traces = {name: read_trace(folder / "runs" / name / "trace") for name in drawn}
    since = {name: rows[name]["sft_steps"] for name in drawn}
    compared = arms.contrasts(values, known) if len(drawn) < len(names) else []
    path = write_page(folder / "study", traces, since, values, known, compared)
    progress.say(f"Look at {path}")
    return {"report": str(path), "contrasts": [without_nan(contrast._asdict()) for contrast in compared]}
