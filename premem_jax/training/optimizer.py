"""AdamW and its schedule. The learning rate is an argument of the update, so one program serves all schedules."""

from functools import cache

import jax
import optax


@cache
def adamw(
    *, b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float, mean_dtype: str = "float32"
) -> optax.GradientTransformation:
    """AdamW without the learning rate, after clipping by the global norm: multiply its result by minus the rate.

    Equal settings give the same object, so compiled updates are shared.

    Weight decay is decoupled (Loshchilov & Hutter, arXiv 1711.05101) and applies to matrices, not to biases and norm
    scales, as in the trainer of `transformers`. The mean of the gradients is kept in `mean_dtype` between updates, that
    of their squares always in fp32: with b2 = 0.999, its changes are lost in bf16.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mean_dtype),
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Learning rate of the update after `step` updates: linear warm-up from 0, then linear decay to 0 at `steps`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * max(steps - step, 0) / max(steps - warmup_steps, 1)


def constant_rate(step: int, *, peak: float, warmup_steps: int) -> float:
    """Learning rate of the update after `step` updates: linear warm-up, then constant.

    Checkpoints on the way are comparable, as those of a decaying rate are not.
    """
    return peak * min(1.0, (step + 1) / max(warmup_steps, 1))


def decayed(params):
    """Which arrays weight decay applies to: all but norm scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("scale", "_bias")), params)
