"""Wrong labels planted in an arithmetic run: how many of them the audit finds, with and without hashes of answers.

    python -m benchmarks.planted [--examples=512] [--share=0.02] [--seeds=2] [--folder=runs/planted]

In each run a share of the training problems gets the solution of the same problem with one slip, which ends in another
answer. Prints, for each run and of all: the precision among as many suspects as labels are wrong (which is the recall,
too), and the recall among twice and four times as many.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.thresholds import printed
from configs import common
from premem_jax.analysis import audit
from premem_jax.analysis.conclusion import conclude
from premem_jax.analysis.trace import read_trace
from premem_jax.data.examples import Example
from premem_jax.experiments import finetune
from premem_jax.running import runtime
from premem_jax.tasks import arithmetic

PROBLEMS = arithmetic.problems


def planted(examples: int, share: float, seed: int) -> set[int]:
    """The ids whose label is wrong."""
    rng = np.random.default_rng([seed, 22])
    return set(rng.choice(examples, round(share * examples), replace=False).tolist())


def mistaken(example: Example) -> Example:
    return replace(example, target=example.rejected, answer=arithmetic.final_answer(example.rejected))


def trained(examples: int, share: float, seed: int, folder: Path) -> dict[str, list[int]]:
    """Ids from the most suspect on, with and without hashes, of a run of `common.arithmetic` with other sizes."""
    config = common.arithmetic()
    config.seed = config.data.seed = seed
    config.cache = str(folder / "cache")
    config.data.train, config.train.epochs = examples, 10
    wrong = planted(examples, share, seed)

    def problems(split: str, count: int, seed: int, **options) -> list[Example]:
        found = PROBLEMS(split, count, seed, **options)
        return [mistaken(one) if split == "train" and one.id in wrong else one for one in found]

    workdir = folder / f"seed-{seed}"
    with mock.patch.object(arithmetic, "problems", problems):
        finetune.run(config, workdir)
    trace = read_trace(workdir / "trace")
    train, chosen = trace.split("train"), conclude(trace, **config.threshold).threshold
    blind = replace(trace, splits=dict(trace.splits) | {"train": replace(train, answers=None)})
    orders = {}
    for name, one in (("with hashes", trace), ("without", blind)):
        found = audit.audit(one, chosen)
        orders[name] = found["example"][audit.ranked(found["suspicion"], found["first_nll"])].tolist()
    return orders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/planted"))
    options = parser.parse_args()
    runtime.prepare(str(options.folder / "cache"))
    rows, total = [], {}
    for seed in range(options.seeds):
        wrong = planted(options.examples, options.share, seed)
        for name, order in trained(options.examples, options.share, seed, options.folder).items():
            hits = np.array([len(wrong & set(order[: times * len(wrong)])) for times in (1, 2, 4)])
            rows.append([f"seed {seed}, {name}", str(len(wrong)), *(f"{x / len(wrong):.2f}" for x in hits)])
            total[name] = total.get(name, 0) + np.array([len(wrong), *hits])
    rows += [[f"all, {name}", str(n), *(f"{x / n:.2f}" for x in hits)] for name, (n, *hits) in total.items()]
    printed(["run", "wrong labels", "precision among as many", "recall among twice as many", "four times"], rows)


if __name__ == "__main__":
    main()
