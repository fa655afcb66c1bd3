"""A size from which a forecast is made, and one that is predicted."""

from premem_jax import config as defaults
from tests.configs import tiny_rungs


def get_config(arg=None):
    strong = {"truth": {"pretrain.steps": 24}}  # of the same size, so that no more programs are compiled
    c = defaults.ladder(tiny_rungs.get_config(arg), {"fit": {}}, strong)
    c.study.draws = 0
    return c
