"""Writes the table of plans in docs/models.md: train, score and sample of both full models on four sets of TPUs.

  python -m benchmarks.plan_table [--workdir=runs/plans]

Takes about an hour on two CPU cores; existing results are not compiled again.
"""

import argparse
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MODELS = {"llama3_8b": "Llama3-8B", "gemma2_9b": "Gemma2-9B"}
PLACES = (("v5e:4x4", 1), ("v6e:2x4", 1), ("v5p:2x2x2", 1), ("v5e:4x4", 2))
GIB = 2**30


def summary(model: str, topology: str, slices: int, workdir: Path) -> dict:
    folder = workdir / f"{model}-{topology.replace(':', '-')}-{slices}"
    option = f"model={model},topology={topology},slices={slices}"
    command = [sys.executable, "-m", "premem_jax.main", f"--config=configs/plan.py:{option}", f"--workdir={folder}"]
    subprocess.run(command, check=True, cwd=PAGE.parents[1])
    return json.loads((folder / "summary.json").read_text())


def rows(plan: dict, place: str) -> list[str]:
    out = []
    for name, program in plan["programs"].items():
        cells = [MODELS[plan["model"]], place, name, "yes" if program["fits"] else "no"]
        if program["compiles"]:
            peak = program["peak_hbm_bytes_per_chip"] + program["resident_bytes_per_chip"]
            cells += [f"{peak / GIB:.1f} of {plan['hbm_bytes_per_chip'] / GIB:.1f}"]
        else:
            cells += ["too much"]
        cells += [f"{program['roofline_seconds']:.2f}", f"{plan['chip_hours_at_roofline'][name]:.1f}"]
        cells += [f"{program['compile_seconds']:.0f}"]
        out.append("| " + " | ".join(cells) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/plans"))
    workdir = parser.parse_args().workdir.absolute()
    lines = [
        "| model | chips | program | fits | GiB per chip | s per call at best | chip-hours in all | compiled, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plans = []
    for topology, slices in PLACES:
        for model in MODELS:
            plans.append(summary(model, topology, slices, workdir))
            kind, chips = topology.split(":")[0], plans[-1]["chips"]
            place = f"{chips} {kind}" if slices == 1 else f"{slices} slices of {chips // slices} {kind}"
            lines += rows(plans[-1], place)
    last = plans[-1]
    versions = f"jax {last['version_jax']}, libtpu {metadata.version('libtpu')}"
    lines += ["", f"Commit {last['git_commit'][:7]}, {versions}. Nothing here ran on a TPU."]
    text = PAGE.read_text()
    marked = re.compile(r"(<!-- plans -->\n).*(<!-- end of plans -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], text))


if __name__ == "__main__":
    main()
