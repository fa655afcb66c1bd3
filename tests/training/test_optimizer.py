"""The schedule and AdamW against NumPy, and what a decaying and clipping optimizer may and may not touch."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.training.optimizer import adamw, learning_rate


@given(warmup=st.integers(0, 50), decay=st.integers(1, 500), peak=st.floats(1e-8, 10), at=st.floats(0, 1.2))
def test_the_schedule_is_piecewise_linear(warmup, decay, peak, at):
    steps = warmup + decay
    step = round(at * steps)
    corners = ([0, warmup, steps], [0, peak, 0]) if warmup else ([0, steps], [peak, 0])
    rate = learning_rate(step, peak=peak, warmup_steps=warmup, steps=steps)
    np.testing.assert_allclose(rate, np.interp(step, *corners), rtol=1e-9, atol=peak * 1e-12)


@given(steps=st.integers(1, 40), warmup=st.integers(0, 80))
def test_the_schedule_is_finite_for_any_warmup(steps, warmup):
    """Also where the warm-up is as long as the run or longer: it is cut short, and never exceeds the peak."""
    rates = [learning_rate(step, peak=2.0, warmup_steps=warmup, steps=steps) for step in range(steps + 1)]
    assert all(0 <= rate <= 2 for rate in rates)
    assert max(rates) > 0 or (warmup == steps == 1) or warmup >= steps == 1


def test_decay_touches_matrices_and_not_norm_scales():
    params = {"mlp": {"up": jnp.full((2, 2), 3.0)}, "norm": {"scale": jnp.full((2,), 3.0)}, "head": jnp.full((2,), 3.0)}
    still = {"mlp": {"up": jnp.zeros((2, 2))}, "norm": {"scale": jnp.zeros(2)}, "head": jnp.zeros(2)}
    optimizer = adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    direction, _ = optimizer.update(still, optimizer.init(params), params)
    np.testing.assert_allclose(direction["mlp"]["up"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(direction["head"], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(direction["norm"]["scale"], 0)


def test_the_mean_of_gradients_may_be_kept_in_half_precision():
    """Against float64, where nothing but the kept mean is rounded, to bf16 after each update."""
    b1, b2, eps, rng = 0.9, 0.95, 1e-8, np.random.default_rng(0)
    optimizer = adamw(b1=b1, b2=b2, eps=eps, weight_decay=0.0, clip_norm=1e30, mean_dtype="bfloat16")
    params = {"up": jnp.zeros(300)}
    state, mean, square = optimizer.init(params), np.zeros(300), np.zeros(300)
    apart = []
    for t in range(1, 9):
        gradient = rng.normal(size=300).astype(np.float32)
        direction, state = optimizer.update({"up": jnp.asarray(gradient)}, state, params)
        mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient.astype(float) ** 2
        expected = mean / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + eps)
        apart.append(np.abs(direction["up"] - expected).max())
        mean = mean.astype(ml_dtypes.bfloat16).astype(float)
    kept = next(part for part in state if hasattr(part, "nu"))
    assert kept.mu["up"].dtype == jnp.bfloat16 and kept.nu["up"].dtype == jnp.float32
    assert apart[0] < 1e-6 and max(apart) < 2e-2
