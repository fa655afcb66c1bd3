"""Checkpoints `a`, `b` and `c` of a folder, and `d`, which is predicted."""

from premem_jax import config
from tests.configs import tiny_checkpoint_rung


def get_config(arg=None):
    weak = {name: {"model.path": f"models/{name}"} for name in "abc"}
    c = config.ladder(tiny_checkpoint_rung.get_config(arg), weak, {"d": {"model.path": "models/d"}})
    c.study.draws = 0
    return c
