"""The CPU time of `configs/analyze.py` on many runs, as a table and as run folders of this program.

    python -m benchmarks.runs [--runs=100] [--evaluations=8] [--examples=1000] [--profile=0]

The runs are made up, each with as many training as test and half as many held-out examples. Prints CPU seconds of the
whole study, report and figures included; with `--profile=20` also the 20 functions in which most of them went.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs import analyze as config_file
from premem_jax.analysis import trace
from premem_jax.experiments import analyze


def evaluation(run: int, at: int, examples: int) -> dict[str, dict[str, np.ndarray]]:
    """One evaluation of a made-up run: the splits train, heldout and test with their columns."""
    rng, speed = np.random.default_rng((run, at)), 0.1 + 0.02 * (run % 50)
    splits = {}
    for name, count in (("train", examples), ("heldout", examples // 2), ("test", examples)):
        nll = rng.gamma(4.0, 0.15, count) * (np.exp(-speed * at) if name == "train" else 1.0)
        chance = np.where(nll < 0.1, 0.95, 0.2 + 0.05 * at + 0.004 * run)
        columns = dict(example=np.arange(count), samples=np.full(count, 5), correct=rng.binomial(5, chance.clip(0, 1)))
        splits[name] = columns if name == "test" else columns | dict(target_nll=nll, target_tokens=np.full(count, 90))
    splits["heldout"]["example"] += examples
    return splits


def write_folders(folder: Path, runs: int, evaluations: int, examples: int) -> None:
    for run in range(runs):
        for at in range(evaluations):
            place = folder / f"run_{run:03d}"
            trace.write_evaluation(place / "trace", 10 * (at + 1), at + 1, evaluation(run, at, examples))
        (place / "config.json").write_text(json.dumps(dict(data=dict(task="made"), model=dict(preset="up"))))


def write_table(folder: Path, runs: int, evaluations: int, examples: int) -> None:
    parts = []
    for run in range(runs):
        for at in range(evaluations):
            splits = evaluation(run, at, examples)
            test = float(np.mean(splits["test"]["correct"] / splits["test"]["samples"]))
            for name in ("train", "heldout"):
                split, rows = splits[name], len(splits[name]["example"])
                same = dict(run=f"run_{run:03d}", split=name, step=10 * (at + 1), test_accuracy=test)
                own = dict(example="example", nll="target_nll", n_samples="samples", n_correct="correct")
                parts.append(pa.table({k: [v] * rows for k, v in same.items()} | {k: split[v] for k, v in own.items()}))
    folder.mkdir()
    pq.write_table(pa.concat_tables(parts), folder / "runs.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 100), ("evaluations", 8), ("examples", 1000), ("profile", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for write in (write_table, write_folders):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made"
            write(made, args.runs, args.evaluations, args.examples)
            config = config_file.get_config()
            config.traces = str(made)
            profile, begun = cProfile.Profile(), time.process_time()
            if args.profile:
                profile.enable()
            analyze.run(config, Path(folder) / "study")
            profile.disable()
            print(f"{write.__name__.removeprefix('write_'):8}{time.process_time() - begun:8.1f} CPU seconds")
            if args.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(args.profile)


if __name__ == "__main__":
    main()
