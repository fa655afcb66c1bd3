"""The squeezing effect where it can be proved: random trials of the theorem, and the released toy with its figure."""

from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis import squeezing_theorem
from premem_jax.running import progress, sealed, workdir
from premem_jax.running.lease import opened


def run(config, folder: Path) -> dict:
    """Checks the claims in `config.trials` trials, draws the panels to `folder`, and returns the summary."""
    keys.check(config)
    with opened(folder, config.to_dict()):
        return checked(config, folder)


def checked(config, folder: Path) -> dict:
    """The counts of violations, the panels and the summary."""
    from premem_jax.report.squeezing_figure import panels_figure  # matplotlib

    failed = squeezing_theorem.check(config.trials, config.seed)
    panels = squeezing_theorem.panels()
    panels_figure(panels, folder / "squeezing.png")
    table = {panel.name: row(panel) for panel in panels}
    summary = {
        "experiment": config.experiment,
        "trials": config.trials,
        "violations": failed._asdict(),
        "panels": table,
        "figure": str(folder / "squeezing.png"),
        **workdir.facts(),
    }
    sealed.write_json(folder / "summary.json", summary)
    counts = ", ".join(f"{claim} {count}" for claim, count in failed._asdict().items())
    progress.say(f"violations in {config.trials:,} random trials: {counts}")
    progress.say(f"{'panel':<38}{'label p':>22}{'likeliest other p':>24}{'others down':>13}")
    for name, cells in table.items():
        progress.say(f"{name:<38}{cells['label']:>22}{cells['likeliest_other']:>24}{cells['others_down']:>13}")
    progress.say(f"Look at {summary['figure']}")
    return summary


def row(panel: squeezing_theorem.Panel) -> dict[str, str]:
    """A row of the table, as text."""
    moved = lambda i: f"{panel.before[i]:.3g} → {panel.after[i]:.3g}"
    down, others = panel.down
    return {"label": moved(panel.label), "likeliest_other": moved(panel.best), "others_down": f"{down}/{others}"}
