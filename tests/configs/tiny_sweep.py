"""Three finetunes of `tiny.py` from one base, the last at a rate at which the loss stops being a number."""

from premem_jax import config as defaults
from tests.configs import tiny


def get_config(arg=None):
    c = tiny.get_config(arg)
    runs = {"slow": 1e-3, "fast": 4e-3, "wild": 1e30}
    return defaults.sweep(c, {name: {"train.learning_rate": rate} for name, rate in runs.items()})
