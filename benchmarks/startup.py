"""Seconds from the start of a process to the text of `--help`, and to the end of the quickstart's first update.

    python -m benchmarks.startup [--rounds=3]

The second time ends when the quickstart's first update, of its base model, is computed; the process is then ended. It
is measured with nothing cached, and with the programs of the first round cached.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Runs the command as `python -m premem_jax.main` does, and ends it once an update has been computed.
FIRST_UPDATE = """
import os, runpy
import jax
from premem_jax.running.programs import Program

def first(program, *args, call=Program.__call__):
    out = call(program, *args)
    if program.jitted.__name__ == "train_step":
        jax.block_until_ready(out)
        os._exit(75)
    return out

Program.__call__ = first
runpy.run_module("premem_jax.main", run_name="__main__")
"""


def seconds(*command: str, ends_with: int) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != ends_with:
        raise SystemExit(f"{' '.join(command[-2:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {"--help": [], "first update": [], "first update, programs cached": []}
    for _ in range(options.rounds):
        found["--help"].append(seconds("-m", "premem_jax.main", "--help", ends_with=0))
        with tempfile.TemporaryDirectory() as folder:
            for name, run in (("first update", "cold"), ("first update, programs cached", "warm")):
                given = f"--workdir={folder}/{run}", f"--config.cache={folder}/cache"
                start = "-c", FIRST_UPDATE, "--config=configs/quickstart.py", *given
                found[name].append(seconds(*start, ends_with=75))
    for name, times in found.items():
        print(f"{name:>30}: {statistics.median(times):5.1f} s ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
