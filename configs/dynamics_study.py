"""What preference training does to every other answer, with seeds: six arms, on two CPU cores.

  python -m premem_jax.main --config=configs/dynamics_study.py

The quickstart's model and task. Before DPO it is finetuned on the right solutions (`sft`), on both (`both`, the remedy
of Ren & Sutherland, arXiv 2407.10490, section 4), or on the right ones with a gate in DPO that spares rejected answers
which are rare already (`gate`). The pairs of DPO were written by the generator (`off`), or are sampled by the model
itself, again every 16 updates (`on`); then the accuracy on the task takes the place of a judge. The study compares arms
that differ in one of these, seed by seed. Options after a colon: seeds, pairs, test (problems), every (updates of a
round).
"""

from configs import common
from premem_jax import config

ARMS = {
    "sft": {},
    "both": {"sft.answers": "both"},
    "gate": {"preference.gate": 0.3},
}


def get_config(arg=None):
    options = config.parse_arg(arg, seeds=5, pairs=256, test=128, every=16)
    c = common.arithmetic_pairs()
    c.data.update(train=options.pairs, test=options.test)
    few = (0, c.sft.epochs, c.sft.epochs + c.train.epochs / 2)  # and at the end
    for evaluator in c.evals.values():
        evaluator.epochs = few
    c.evals.test_accuracy.epochs = few[1:2]
    c.evals.test_greedy = config.evaluator("greedy_responses", "test", few[1:2], batch=32, max_new_tokens=44)
    c.influence.update(every=32, prompts=8)
    c.on_policy.update(samples=8, max_new_tokens=44, batch=32)
    members = [
        (f"{arm}-{policy}-seed{seed}", changes | {"seed": seed, "data.seed": seed, "on_policy.every": every}, ())
        for seed in range(options.seeds)
        for arm, settings in ARMS.items()
        for policy, every in (("off", 0), ("on", options.every))
        for changes in [{"experiment": "preference"} | settings]
    ]
    return config.study("dynamics", c, members)
