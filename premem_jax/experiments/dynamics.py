"""Arms of preference training, side by side: what became of every type of response, and of the accuracy."""

from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis.trace import read_trace
from premem_jax.experiments import studies
from premem_jax.members import members_of
from premem_jax.running import progress

COLUMNS = dict(
    change_chosen=".1f", change_rejected=".1f", change_other=".1f", change_greedy=".1f", margin=".1f",
    reward_accuracy=".1%", test_accuracy=".1%",
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

    arms = {name: read_trace(folder / "runs" / name / "trace") for name in members_of(config) if name in rows}
    since = {name: rows[name]["sft_steps"] for name in arms}
    values = {name: {key: rows[name].get(key) for key in COLUMNS} for name in arms}
    path = write_page(folder / "study", arms, since, values)
    progress.say(f"Look at {path}")
    return {"report": str(path)}
