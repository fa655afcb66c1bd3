"""Pre-memorization accuracy in a few minutes on two CPU cores.

  python -m premem_jax.main --config=configs/quickstart.py

A 0.35 M parameter Llama is trained on arithmetic texts (cached for the next run), then finetuned until it has memorized
its training problems. Options after a colon: examples (training problems), epochs.
"""

from configs import common
from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, examples=256, epochs=16)
    c = common.arithmetic()
    c.data.train, c.train.epochs = options.examples, options.epochs
    return c
