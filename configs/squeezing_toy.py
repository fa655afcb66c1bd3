"""The squeezing effect as a theorem: exact checks on random inputs, and the toy of Ren & Sutherland, in seconds.

  python -m premem_jax.main --config=configs/squeezing_toy.py

Section 5 of arXiv 2407.10490. Options after a colon: trials, seed.
"""

from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, trials=20000, seed=0)
    return config.squeezing_toy(trials=options.trials, seed=options.seed)
