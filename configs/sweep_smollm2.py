"""Six finetunes of a pretrained model, SmolLM2-135M-Instruct: pre-memorization accuracy against test accuracy.

  python -m premem_jax.main --config=configs/sweep_smollm2.py --config.model.path=smollm2

`docs/own_data.md` makes the folder `smollm2`; the task, plain_arithmetic, is generated. Training examples and learning
rates differ; the updates are about as many, so fewer examples are seen more often. `runs/sweep_smollm2/study/` has the
page and the figures. Option after the colon: seed (of the problems, their order and the samples).
"""

from premem_jax import config
from premem_jax.config import evaluator

# Training examples, epochs, learning rate.
GRID = (
    (96, 2, 1.5e-4),
    (32, 6, 1.5e-4),
    (64, 3, 5e-5),
    (64, 3, 1.5e-4),
    (96, 2, 5e-5),
    (32, 6, 5e-5),
)


def get_config(arg=None):
    options = config.parse_arg(arg, seed=0)
    c = config.finetune()
    c.seed = c.data.seed = options.seed
    c.data.update(task="plain_arithmetic", heldout=150, test=80, template="none")
    c.data.update(context=30, buckets=(18, 30), drop_long=True)
    c.train.update(batch=8, warmup_steps=4)
    c.optimizer.update(b2=0.98, weight_decay=0.0, clip_norm=1.0)
    c.evals = dict(
        train_likelihood=evaluator("likelihood", "train", (), batch=32),
        heldout_likelihood=evaluator("likelihood", "heldout", (), batch=50),
        train_accuracy=evaluator("accuracy", "train", (), batch=32, samples=2, max_new_tokens=14),
        test_accuracy=evaluator("accuracy", "test", (), batch=80, samples=1, max_new_tokens=14),
    )
    runs = {
        f"{examples}-examples-lr-{rate:g}": {
            "data.train": examples,
            "train.epochs": epochs,
            "train.learning_rate": rate,
            **{f"evals.{name}.epochs": (epochs / 2,) for name in c.evals},  # and at the end
        }
        for examples, epochs, rate in GRID
    }
    return config.sweep(c, runs)
