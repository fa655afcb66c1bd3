"""A plan of preference training: the one of configs/plan.py."""

from configs import plan


def get_config(arg=None):
    return plan.get_config("task=dynamics_hh")
