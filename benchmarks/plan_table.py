"""Writes the tables of plans in docs/models.md: train, score and sample of full models on sets of TPUs.

  python -m benchmarks.plan_table [--table=plans] [--workdir=runs/plans]

Takes more than an hour on two CPU cores; existing results are not compiled again.
"""

import argparse
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MODELS = {
    "llama3_8b": "Llama3-8B",
    "gemma2_9b": "Gemma2-9B",
    "mistral_7b": "Mistral-7B",
    "qwen2_5_7b": "Qwen2.5-7B",
    "qwen3_8b": "Qwen3-8B",
    "qwen2_5_1_5b": "Qwen2.5-1.5B",
}
PLACES = (("v5e:4x4", 1), ("v6e:2x4", 1), ("v5p:2x2x2", 1), ("v5e:4x4", 2))
# By the name of the table's marker: model, topology and slices of each plan.
TABLES = {
    "plans": [(model, *place) for place in PLACES for model in ("llama3_8b", "gemma2_9b")],
    "plans of later families": [
        *((model, "v5e:4x4", 1) for model in ("mistral_7b", "qwen2_5_7b", "qwen3_8b")),
        ("qwen2_5_1_5b", "v5e:2x4", 1),
    ],
}
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


def table(plans: list[tuple[str, str, int]], workdir: Path) -> str:
    """The table of these plans, and what made it."""
    lines = [
        "| model | chips | program | fits | GiB per chip | s per call at best | chip-hours in all | compiled, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, topology, slices in plans:
        plan = summary(model, topology, slices, workdir)
        kind, chips = topology.split(":")[0], plan["chips"]
        place = f"{chips} {kind}" if slices == 1 else f"{slices} slices of {chips // slices} {kind}"
        lines += rows(plan, place)
    versions = f"jax {plan['version_jax']}, libtpu {metadata.version('libtpu')}"
    return "\n".join([*lines, "", f"Commit {plan['git_commit'][:7]}, {versions}. Nothing here ran on a TPU.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, nargs="*", default=[*TABLES])
    parser.add_argument("--workdir", type=Path, default=Path("runs/plans"))
    options = parser.parse_args()
    for name in options.table:
        found = table(TABLES[name], options.workdir.absolute())
        marked = re.compile(rf"(<!-- {name} -->\n).*(<!-- end of {name} -->)", re.DOTALL)
        PAGE.write_text(marked.sub(lambda m, found=found: m[1] + found + m[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
