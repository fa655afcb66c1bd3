"""The theorem in exact arithmetic against the step itself, the released toy's digits, and its trends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.analysis import squeezing_theorem as theorem


def test_no_random_trial_violates_a_claim():
    assert theorem.check(1000, seed=1) == (0, 0, 0, 0)


def test_a_wrong_statement_is_noticed(monkeypatch):
    """With the threshold of an infinitely small step in place of τ, trials fail."""
    monkeypatch.setattr(theorem, "threshold", lambda p, label, s: float(p @ p - p[label]))
    assert theorem.check(300, seed=1).threshold > 0


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 5))
def test_gains_are_proportional_to_the_distance_from_the_threshold(seed, s):
    """Through the weights of a softmax regression, by the gradient of log p(y⁻) taken by central differences."""
    rng = np.random.default_rng(seed)
    x, W, label = rng.normal(size=3), rng.normal(size=(3, 6)), int(rng.integers(6))
    value = lambda W: theorem.log_softmax(x @ W)[label]
    gradient = np.zeros_like(W)
    for at in np.ndindex(W.shape):
        moved = np.zeros_like(W)
        moved[at] = 1e-5
        gradient[at] = (value(W + moved) - value(W - moved)) / 2e-5
    before, rate = theorem.log_softmax(x @ W), s / (x @ x)
    gain = theorem.log_softmax(x @ (W - rate * gradient)) - before
    p = np.exp(before)
    others = np.arange(6) != label
    expected = s * (p - theorem.threshold(p, label, s))
    np.testing.assert_allclose(gain[others], expected[others], atol=1e-7 * (1 + s))
    assert theorem.threshold(p, label, 1e-6) == pytest.approx(p @ p - p[label], abs=1e-5)


def test_the_released_toy_has_its_printed_digits():
    """Label before and after, likeliest other before and after, and how many of the others fall."""
    printed = [
        ("7.2e-02", "0.947", "0.250", "0.007", (49, 49)),
        ("2.3e-02", "1.1e-03", "0.0278", "0.0291", (0, 49)),
        ("2.9e-02", "4.6e-06", "0.763", "0.987", (48, 49)),
        ("4.0e-10", "5e-14", "0.763", "0.986", (48, 49)),
        ("4.0e-10", "2.2e-12", "0.7627", "0.7627", (48, 49)),
    ]

    def as_printed(value, like):
        digits = len(like.split("e")[0].partition(".")[2])
        return f"{value:.{digits}{'e' if 'e' in like else 'f'}}"

    for panel, (*numbers, down) in zip(theorem.panels(), printed, strict=True):
        values = panel.before[panel.label], panel.after[panel.label], panel.before[panel.best], panel.after[panel.best]
        assert [as_printed(value, like) for value, like in zip(values, numbers, strict=True)] == numbers
        assert panel.down == down


def test_peakier_models_are_squeezed_more():
    """Claim 4 as a trend: V=50, s=0.5, random labels; the share of others that fall grows with the logits' spread."""
    rng, shares = np.random.default_rng(0), []
    for spread in (0.05, 1, 3):
        falls = []
        for _ in range(200):
            z, label = rng.normal(size=50) * spread, int(rng.integers(50))
            before, after = theorem.log_softmax(z), theorem.log_softmax(theorem.step(z, label, -0.5))
            falls.append(np.mean(np.delete(after < before, label)))
        shares.append(np.mean(falls))
    assert shares[0] < 0.02 < 0.6 < shares[1] < shares[2]
