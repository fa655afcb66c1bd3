"""Twelve finetunes of the quickstart's model: pre-memorization accuracy against test accuracy, on two CPU cores.

  python -m premem_jax.main --config=configs/sweep_arithmetic.py

Learning rates, epochs and training sets differ; all share one cached base model. `runs/sweep_arithmetic/study/` has the
page and the figures. At its end, each finetune is also sampled on reworded training examples and with forced openings.
Options after the colon: seed (of the base model and the finetunes), data_seed, times (all learning rates are multiplied
by it), largest (training set). With adapters, which need higher rates:

  python -m premem_jax.main --config=configs/sweep_arithmetic.py:times=3 --config.lora.rank=8
"""

from configs import common
from premem_jax import config

# Training examples, epochs, and the learning rates that they are trained with.
GRID = (
    (64, 30, (1e-3, 5e-3)),
    (128, 20, (1e-3, 3e-3, 8e-3)),
    (256, 16, (1e-3, 3e-3, 8e-3)),
    (512, 10, (1e-3, 3e-3, 6e-3)),
    (768, 6, (2e-3,)),
)


def get_config(arg=None):
    options = config.parse_arg(arg, seed=0, data_seed=0, times=1.0, largest=768)
    c = common.arithmetic()
    c.seed, c.data.seed = options.seed, options.data_seed
    c.evals.train_accuracy.samples = 5
    c.evals.test_accuracy.samples = 4
    few = (1, 4)  # and at the end
    c.evals.gradient_variance = config.evaluator("gradient_variance", "train", few, batch=16, batches=8)
    c.evals.distance = config.evaluator("distance", "train", few)
    c.evals.confidence = config.evaluator("confidence", "train", few, batch=128, max_new_tokens=44)
    otherwise = dict(batch=32, max_new_tokens=44, samples=5)  # than in training
    c.evals.train_reworded = config.evaluator("accuracy", "train", (), reworded=True, **otherwise)
    c.evals.train_calm = config.evaluator("accuracy", "train", (), opening=" Stay calm .", **otherwise)
    runs = {
        f"{examples}-examples-lr-{rate:g}": {
            "data.train": examples,
            "train.epochs": epochs,
            "train.learning_rate": rate,
        }
        for examples, epochs, rates in GRID
        if examples <= options.largest
        for rate in (options.times * each for each in rates)
    }
    return config.sweep(c, runs)
