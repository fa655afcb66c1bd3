"""Pre-memorization accuracy in a few minutes on two CPU cores.

  python -m premem_jax.main --config=configs/quickstart.py

A 0.35 M parameter Llama is trained on arithmetic texts (cached for the next run), then finetuned until it has memorized
its training problems. Options after a colon: examples (training problems), epochs, and seeds: a study of so many runs,
each with its own base model, problems, order and samples, which counts how often the estimate agrees with the test
accuracy (docs/study.md, "The estimate"). Launched twice, it makes two runs at a time:

  python -m premem_jax.main --config=configs/quickstart.py:seeds=10
"""

from configs import common
from premem_jax import config

EARLY = (1, 2, 3, 4, 6, 9)  # while problems are memorized; accuracies from long before would be too low


def get_config(arg=None):
    options = config.parse_arg(arg, examples=160, epochs=14, seeds=0)
    c = common.arithmetic()
    c.data.update(train=options.examples, test=256)
    c.train.update(epochs=options.epochs, learning_rate=4e-3)
    for each in c.evals.values():
        each.epochs = EARLY
    c.evals.test_accuracy.samples = 3
    if not options.seeds:
        return c
    return config.sweep(c, {f"seed-{seed}": {"seed": seed, "data.seed": seed} for seed in range(options.seeds)})
