"""Collect new training examples where the model is weak, and measure what it saves, on two CPU cores.

  python -m premem_jax.main --config=configs/curate.py

The quickstart's model is finetuned on problems of several types. Each strategy chooses originals of which it wants
more, the task makes new problems like them, and the finetune begins again from the base model. The result is the test
accuracy for each strategy against that of as many examples at random: `runs/curate/report.html`.

Options after a colon: strategies (joined by +), originals, added (new examples of a round), rounds, seeds, sizes (of
the random ones, in rounds and joined by +), test (problems), task. A whole study takes an hour or two:

  python -m premem_jax.main --config=configs/curate.py:strategies=oracle+pre_memorization+early_accuracy,seeds=8,\
sizes=0.5+1+2+3+4+6+8,test=2000
"""

from configs import common
from premem_jax import config
from premem_jax.analysis.jobs import BASE, IID, Job


def get_config(arg=None):
    options = config.parse_arg(
        arg,
        strategies="oracle+pre_memorization",
        originals=160,
        added=160,
        rounds=1,
        seeds=1,
        sizes="1+2",
        test=500,
        task="graded_arithmetic",
    )
    c = common.arithmetic()
    c.data.update(task=options.task, train=options.originals, heldout=256, test=options.test, buckets=(80, 96))
    c.train.update(epochs=12, learning_rate=2e-3)
    early = (1, 2, 4)
    for name in ("train_likelihood", "heldout_likelihood", "train_accuracy"):
        c.evals[name].update(epochs=early, batch=64)
    c.evals.train_accuracy.update(samples=4, max_new_tokens=56)
    c.evals.test_accuracy.update(epochs=(), samples=4, batch=64, max_new_tokens=56)
    steps = [options.added * (i + 1) for i in range(options.rounds)]
    paths = {name: steps for name in options.strategies.split("+")}
    paths[IID] = sorted({round(float(size) * options.added) for size in options.sizes.split("+")} | set(steps))
    return curation(c, paths, options.seeds)


def curation(base, paths: dict[str, list[int]], seeds: int):
    """A study of `base` with the numbers of examples that each strategy adds, one after another, for so many seeds."""
    members = []
    for seed in range(seeds):
        changes, before = {"data.seed": seed}, Job(BASE, 0, seed).name
        members.append((before, changes, ()))
        for strategy, totals in paths.items():
            needs = before
            for total in totals:
                name = Job(strategy, total, seed).name
                members.append((name, changes, (needs,)))
                needs = name
    c = config.study("curate", base, members)
    c.study.update(source="generator", pool="", url="", model="", per_minute=60.0, share=0.3, below=0.0, draws=1000)
    return c
