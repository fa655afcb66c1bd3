"""Whether two commits compute the same: every array of the trace and of the checkpoints of small runs, bit for bit.

    python -m benchmarks.same_bits COMMIT COMMIT [--config=tests/configs/tiny.py --config=configs/quickstart.py]

Checks each commit out into a folder of its own, runs its own copy of each config there on this machine, and compares
what the two runs have in common; of a study, all its runs. Settings such as --config.data.path=DIR hold for all of
them. Prints the arrays that differ, and how many there are; the exit status is 1 where any does. A commit that is meant
to change numbers names the operation that it reordered.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def made_by(commit: str, config: str, settings: list[str], place: Path) -> Path:
    """The folder of a run of `config` by the program at `commit`."""
    checkout, workdir = place / f"checkout-{commit}", place / commit / Path(config).stem
    if not checkout.exists():
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", checkout, commit], check=True)
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "premem_jax.main", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.cache={place / commit / 'cache'}", *settings]
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    return workdir


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Every column of the trace and every array of the kept checkpoints, by name."""
    import jax
    import orbax.checkpoint as ocp
    import pyarrow.parquet as pq

    found = {}
    for path in sorted(folder.rglob("trace/*.parquet")):
        table = pq.read_table(path)
        for name in table.column_names:
            found[f"{path.relative_to(folder)}/{name}"] = np.asarray(table[name].to_pylist(), dtype=object)
    for path in sorted(folder.rglob("checkpoints/[0-9]*")):
        tree = ocp.StandardCheckpointer().restore(path.absolute() / "default")
        for key, value in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{path.relative_to(folder)}{jax.tree_util.keystr(key)}"] = np.asarray(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--config", action="append", help="relative to the checkout; repeat for more")
    options, settings = parser.parse_known_args()
    names = [subprocess.check_output(["git", "-C", ROOT, "rev-parse", c], text=True).strip() for c in options.commits]
    different = 0
    with tempfile.TemporaryDirectory() as place:
        try:
            for config in options.config or ["tests/configs/tiny.py"]:
                before, after = (arrays_of(made_by(name, config, settings, Path(place))) for name in names)
                both = before.keys() & after.keys()
                unequal = sorted(key for key in both if not _same(before[key], after[key]))
                print(f"{config}: {len(both)} arrays in both, {len(unequal)} differ", *unequal, sep="\n  ")
                for commit, mine, other in zip(options.commits, (before, after), (after, before), strict=True):
                    if alone := sorted(mine.keys() - other.keys()):
                        print(f"  only at {commit}: {len(alone)}, such as {alone[0]}")
                different += len(unequal) + (not both)
        finally:
            for name in set(names):
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", Path(place) / f"checkout-{name}"])
    sys.exit(different > 0)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object:
        return repr(a.tolist()) == repr(b.tolist())  # which tells 0.0 from -0.0, and takes NaN for itself
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


if __name__ == "__main__":
    main()
