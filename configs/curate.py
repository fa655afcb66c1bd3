"""Collect new training examples where the model is weak, and measure what it saves, on two CPU cores.

  python -m premem_jax.main --config=configs/curate.py

The quickstart's model is finetuned on problems of several types. Each strategy chooses originals of which it wants
more, the task makes new problems like them, and the finetune begins again from the base model. The result is the test
accuracy for each strategy against that of as many examples at random: `runs/curate/report.html`.

Options after a colon: strategies (joined by +), originals, added (new examples of a round), rounds, seeds, sizes (of
the random ones, in rounds and joined by +), test (problems), task. A whole study takes an hour or two:

  python -m premem_jax.main --config=configs/curate.py:strategies=oracle+pre_memorization+early_accuracy,seeds=8,\
sizes=0.5+1+2+3+4+6+8,test=2000

With model=llama3_8b or gemma2_9b and task=gsm8k or math, the members are finetunes of the paper on all originals, and
new examples come from a pool of your own; each has the programs that `configs/plan.py:model=MODEL,task=TASK` plans:

  python -m premem_jax.main --config=configs/curate.py:model=llama3_8b,task=gsm8k,added=7473,rounds=3 \
--config.study.pool=POOL.jsonl --config.model.path=HF_FOLDER
"""

from configs import common, plan
from premem_jax import config
from premem_jax.analysis.jobs import BASE, IID, Job
from premem_jax.errors import UserError

PAPER = ("gsm8k", "math")


def get_config(arg=None):
    options = config.parse_arg(
        arg,
        strategies="",
        originals=160,
        added=160,
        rounds=1,
        seeds=1,
        sizes="1+2",
        test=500,
        task="graded_arithmetic",
        model="",
    )
    c = paper(options.model, options.task) if options.model else small(options)
    steps = [options.added * (i + 1) for i in range(options.rounds)]
    usual = "pre_memorization+early_accuracy" if options.model else "oracle+pre_memorization"
    paths = {name: steps for name in (options.strategies or usual).split("+")}
    if "ifd" in paths:
        like = c.evals.train_likelihood
        c.evals.train_alone = config.evaluator("likelihood", "train", like.epochs, batch=like.batch, alone=True)
    paths[IID] = sorted({round(float(size) * options.added) for size in options.sizes.split("+")} | set(steps))
    c = curation(c, paths, options.seeds)
    if options.model:
        c.study.update(source="file", below=0.75)  # as in the paper, which had its pool from GPT-4
    return c


def paper(model: str, task: str):
    """A finetune of Kang et al., with the rate of their half run."""
    if task not in PAPER:
        raise UserError(f"config option task={task!r}: with a model, choose {', '.join(PAPER)}")
    return plan.recipe(model, task)


def small(options):
    c = common.arithmetic()
    c.data.update(task=options.task, train=options.originals, heldout=256, test=options.test, buckets=(80, 96))
    c.train.update(epochs=12, learning_rate=2e-3)
    early = (1, 2, 4)
    for name in ("train_likelihood", "heldout_likelihood", "train_accuracy"):
        c.evals[name].update(epochs=early, batch=64)
    c.evals.train_accuracy.update(samples=4, max_new_tokens=56)
    c.evals.test_accuracy.update(epochs=(), samples=4, batch=64, max_new_tokens=56)
    return c


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
