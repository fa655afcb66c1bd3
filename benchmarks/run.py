"""Training, sampling and scoring compared with `transformers` on torch and with `google-tunix`.

    python -m benchmarks.run [--suite=train,sample,score] [--model=20m] [--rounds=7] [--tunix_python=PATH]
    python -m benchmarks.run --suite=finetune --model=1m --rounds=0 --data=GSM8K [--examples=512]

All get the same weights, tokens and settings, with the lengths of GSM8K. Each is a separate process, and they work in
turns. First, losses, perplexities and greedy responses are checked for agreement. `finetune` is a whole run, training
and six evaluations, compared with the method of Kang et al.; without rounds its first turn counts, compilation
included. `rounds` compares our sampling in several rounds and in one. `lora` trains the same adapters in both.
`--model` is 1m, 20m, 120m (Llama, fp32), 1m-qwen, 20m-qwen, 120m-qwen (the same with the biases of Qwen2.5), or a
preset of this library such as llama3_8b, with random weights in bfloat16. PATH is the Python of an environment with
google-tunix; without it, tunix is left out. Prints a table; the figures go to benchmarks/results/. The exit status is 1
if contenders do not agree.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks import workload
from benchmarks.contenders.turns import Contender

ROOT = Path(__file__).parents[1]
NAMES = {"premem": "premem_jax", "hugging_face": "transformers", "tunix": "tunix"}

# Comparisons by suite: contenders, their tasks and a label. The first is ours.
CASES = {
    "train": {"update": (("premem", "train", ""), ("hugging_face", "train", ""), ("tunix", "train", ""))},
    "packed": {
        "packed": (
            ("premem", "train_packed", "shared rows"),
            ("hugging_face", "train_uncut", "padded to the longest"),
            ("premem", "train_uncut", "padded to the longest"),
        )
    },
    "lora": {"adapters": (("premem", "train_lora", ""), ("hugging_face", "train_lora", "peft"))},
    "sample": {
        "sample": (
            ("premem", "sample", ""),
            ("hugging_face", "sample", "num_return_sequences"),
            ("hugging_face", "sample_static", "static cache"),
            ("tunix", "sample", ""),
        ),
        "top-p": (
            ("premem", "sample_top_p", ""),
            ("hugging_face", "sample_top_p", "num_return_sequences"),
            ("tunix", "sample_top_p", ""),
        ),
        "greedy": (("premem", "greedy", ""), ("hugging_face", "greedy", ""), ("tunix", "greedy", "")),
    },
    "score": {
        "perplexity": (
            ("premem", "score", ""),
            ("hugging_face", "score_one_by_one", "one by one"),
            ("hugging_face", "score", "batches"),
            ("tunix", "score", "batches"),
        )
    },
    "finetune": {
        "finetune": (
            ("premem", "finetune", ""),
            ("hugging_face", "finetune", "one by one, generate"),
        )
    },
    "rounds": {"finetune": (("premem", "finetune", ""), ("premem", "finetune_in_one_round", "no rounds"))},
}
# Tokens of one turn: padded ones in `train`, sampled ones, and those of the texts in scoring and with shared rows.
TOKENS = {
    "update": workload.UPDATES * workload.TRAIN_ROWS * workload.TRAIN_LENGTH,
    "adapters": workload.UPDATES * workload.TRAIN_ROWS * workload.TRAIN_LENGTH,
    "sample": workload.PROMPTS * workload.SAMPLES * workload.NEW_TOKENS,
    "top-p": workload.PROMPTS * workload.SAMPLES * workload.NEW_TOKENS,
    "greedy": workload.PROMPTS * workload.NEW_TOKENS,
    "packed": sum(map(sum, workload.LENGTHS)),
    "perplexity": sum(map(sum, workload.LENGTHS)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="train,sample,score")
    parser.add_argument("--model", default="20m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tunix_python")
    parser.add_argument("--data", default="", help="folder with GSM8K's train.jsonl and test.jsonl, for the finetune")
    parser.add_argument("--examples", type=int, default=512)
    options = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # contenders share a GPU
    where = place()  # before it takes its time, in which files may change
    dtype = "float32" if options.model in workload.SIZES else "bfloat16"
    pythons = dict(premem=sys.executable, hugging_face=sys.executable)
    if options.tunix_python:
        pythons["tunix"] = options.tunix_python
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name) / "model"
        finetune = (str(Path(options.data).resolve()), str(options.examples)) if options.data else ()
        make = "from benchmarks.contenders import premem; import sys; premem.make(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", make, folder, options.model, dtype, *finetune], check=True, cwd=ROOT)
        contenders = {who: stack.enter_context(Contender(pythons[who], who, folder)) for who in pythons}
        rows = []
        for suite in options.suite.split(","):
            for case, entries in CASES[suite].items():
                entries = [entry for entry in entries if entry[0] in contenders]
                rows += compare(case, entries, contenders, options.rounds)
        versions = {NAMES[who]: contender.versions for who, contender in contenders.items()}
    report = dict(model=options.model, dtype=dtype, rounds=options.rounds, rows=rows, versions=versions) | where
    path = ROOT / "benchmarks" / "results" / f"{options.model}-{options.suite.replace(',', '-')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['device']}, commit {report['commit'][:9]}, load {report['load']}; in {path.relative_to(ROOT)}")
    apart = [row for row in rows if not row["agrees"].endswith(("same", "-"))]
    if apart and dtype == "float32":
        raise SystemExit("\n".join(f"{row['case']}: {row['contender']} and premem_jax do not agree" for row in apart))


def compare(case: str, entries: list, contenders: dict, rounds: int) -> list[dict]:
    """Runs one case in turns, after a warm-up turn of each; prints and returns a row per contender."""
    first = [contenders[who].turn(task) for who, task, _ in entries]
    turns = [[contenders[who].turn(task) for who, task, _ in entries] for _ in range(rounds)] or [first]
    rows = []
    for i, (who, task, note) in enumerate(entries):
        seconds, cpu = ([turn[i][clock] for turn in turns] for clock in ("seconds", "cpu"))
        ratios = sorted(theirs / ours[0]["seconds"] for theirs, ours in zip(seconds, turns, strict=True))
        row = dict(
            case=case, contender=f"{NAMES[who]} {task}", note=note, seconds=seconds, cpu=cpu, first=first[i]["seconds"]
        )
        speed = f"{statistics.median(seconds):,.1f} s"
        if case in TOKENS:
            row |= dict(tokens_per_second=round(TOKENS[case] / statistics.median(seconds)))
            speed = f"{row['tokens_per_second']:,} tok/s"
        row |= dict(ratio=round(statistics.median(ratios), 2), lowest=round(ratios[0], 2), highest=round(ratios[-1], 2))
        row |= dict(rss_mb=round(turns[-1][i]["rss"] / 1e6), agrees=agreement(case, first[0], first[i]))
        rows.append(row)
        print(
            f"{case:>10}  {NAMES[who]:<12} {note:<20} {speed:>14}   theirs / ours "
            f"{row['ratio']:>5.2f} ({row['lowest']:.2f} to {row['highest']:.2f})   "
            f"cpu {statistics.median(cpu):6.2f} s   {row['rss_mb']:>6,} MB   "
            f"{row['agrees']}",
            flush=True,
        )
    return rows


def agreement(case: str, ours: dict, theirs: dict) -> str:
    """Agreement of the outputs of two first turns; ends in `same` if they agree, in `-` if outputs are random."""
    if case in ("sample", "top-p"):
        return "-"
    a, b = np.array(ours["output"]), np.array(theirs["output"])
    if case == "finetune":
        nll, accuracy = np.abs(a - b).mean(axis=-1).max(axis=-1), np.abs(a.mean(axis=-1) - b.mean(axis=-1)).max(axis=-1)
        apart = f"NLL {nll[0]:.4f} nats apart, mean accuracy {accuracy[1]:.3f}"
        return apart + (", same" if nll[0] < 0.02 and accuracy[1] < 0.03 else "")
    if case == "greedy":
        # Rounding decides between two nearly equally likely tokens, and all later tokens then differ.
        equal = np.mean(np.logical_and.accumulate(a == b, axis=-1))
        return f"{equal:.4f} of tokens" + (" same" if equal > 0.9 else "")
    apart = np.max(np.abs(a - b))
    return f"at most {apart:.0e} nats apart" + (", same" if apart < 1e-3 else "")


def place() -> dict:
    """Machine, time and commit of the measurement."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    device = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    return dict(
        device=f"{os.cpu_count()} cores of {device.partition(': ')[2]}",
        commit=subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        date=datetime.date.today().isoformat(),
        load=os.getloadavg()[0],
    )


if __name__ == "__main__":
    main()
