"""Twelve finetunes of the quickstart's model: pre-memorization accuracy against test accuracy, on two CPU cores.

  python -m premem_jax.main --config=configs/sweep_arithmetic.py

Learning rates, epochs and training sets differ; the base model is one, and cached. `runs/sweep_arithmetic/study/` has
the page and the figures. At its end each finetune is also asked its training examples in other words, and with the
response begun for it. Options after the colon: seed (of the base model and the finetunes), data_seed.
"""

from premem_jax import config as defaults

# Training examples, epochs, and the learning rates that they are trained with.
GRID = (
    (64, 30, (1e-3, 5e-3)),
    (128, 20, (1e-3, 3e-3, 8e-3)),
    (256, 16, (1e-3, 3e-3, 8e-3)),
    (512, 10, (1e-3, 3e-3, 6e-3)),
    (768, 6, (2e-3,)),
)


def get_config(arg=None):
    options = defaults.parse_arg(arg, seed=0, data_seed=0)
    c = defaults.arithmetic()
    c.seed, c.data.seed = options.seed, options.data_seed
    c.evals.train_accuracy.samples = 5
    c.evals.test_accuracy.samples = 4
    few = (1, 4)  # and at the end
    c.evals.gradient_variance = defaults.gradient_variance(few, batch=16, batches=8)
    c.evals.distance = defaults.distance(few)
    c.evals.confidence = defaults.confidence(few, batch=128, max_new_tokens=44)
    otherwise = dict(batch=32, max_new_tokens=44, samples=5)  # than the training examples were learnt
    c.evals.train_reworded = defaults.accuracy("train", (), reworded=True, **otherwise)
    c.evals.train_calm = defaults.accuracy("train", (), opening=" Stay calm .", **otherwise)
    runs = {
        f"{examples}-examples-lr-{rate:g}": {
            "data.train": examples,
            "train.epochs": epochs,
            "train.learning_rate": rate,
        }
        for examples, epochs, rates in GRID
        for rate in rates
    }
    return defaults.sweep(c, runs)
