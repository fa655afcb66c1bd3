"""The squeezing effect in softmax regression: the exact effect of a negative step on a label on all other classes.

Section 5 and appendix of Ren & Sutherland (arXiv 2407.10490) in a sharper form. With logits z = Wᵀx and step size s
= η‖x‖², a negative step on label y gives z' = z + s (p − e_y), so for i ≠ y

    log(p'_i / p_i) = s p_i − log Σ_j p_j exp(s (p_j − [j = y])) = s (p_i − τ),

which grows with p_i: a class rises if and only if p_i is above τ, which tends to ‖p‖² − p_y as s → 0. All in float64.
"""

from typing import NamedTuple

import numpy as np

SEED, FEATURES, CLASSES = 10086, 4, 50  # of the released notebook
PEAKS = range(5, 13)


def log_softmax(z: np.ndarray) -> np.ndarray:
    """(V,) log-probabilities of logits."""
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def step(z: np.ndarray, label: int, s: float) -> np.ndarray:
    """Logits (V,) after a step of size `s` towards a label; below 0 away from it."""
    return z - s * (np.exp(log_softmax(z)) - np.eye(len(z))[label])


def threshold(p: np.ndarray, label: int, s: float) -> float:
    """The threshold τ: a negative step of size `s` > 0 raises the classes except `label` with a probability above τ."""
    return float(np.log(np.sum(p * np.exp(s * (p - np.eye(len(p))[label])))) / s)


class Violations(NamedTuple):
    """Number of random trials in which each claim failed; all are 0 in exact arithmetic."""

    label_falls: int  # claim 1: p(y⁻) falls
    argmax_rises: int  # claim 2: the likeliest other class rises
    ordering: int  # claim 3: a likelier class gains at least as large a factor
    threshold: int  # claim 3: others rise if and only if they are above τ


def check(trials: int, seed: int) -> Violations:
    """Checks claims 1 to 3 on random logits: V 3 to 59, s 1e-4 to 30. Classes within rounding of τ are skipped."""
    rng, failed = np.random.default_rng(seed), np.zeros(4, int)
    for _ in range(trials):
        V, s = int(rng.integers(3, 60)), float(10 ** rng.uniform(-4, np.log10(30)))
        z, label = rng.normal(size=V) * 10 ** rng.uniform(-1.5, 0.8), int(rng.integers(V))
        before, after = log_softmax(z), log_softmax(step(z, label, -s))
        p, others = np.exp(before), np.delete(np.arange(V), label)
        gain = (after - before)[others]
        tau, slack = threshold(p, label, s), 1e-12 * (1 + np.abs(before).max())
        best, order = others[np.argmax(p[others])], np.argsort(p[others])
        clear = np.abs(s * (p[others] - tau)) > slack
        failed += (
            after[label] - before[label] > slack,
            after[best] - before[best] < -slack,
            (np.diff(gain[order]) < -slack).any(),
            ((gain > 0) != (p[others] > tau))[clear].any(),
        )
    return Violations(*map(int, failed))


class Panel(NamedTuple):
    """One panel of the released toy: probabilities (V,) before and after a step."""

    name: str
    label: int
    before: np.ndarray
    after: np.ndarray

    @property
    def best(self) -> int:
        """The likeliest class except the label, before the step."""
        return int(np.argmax(np.where(np.arange(len(self.before)) == self.label, -1, self.before)))

    @property
    def down(self) -> tuple[int, int]:
        """Number of other classes that fall, and number of other classes."""
        others = np.arange(len(self.before)) != self.label
        return int((self.after < self.before)[others].sum()), int(others.sum())


def panels() -> list[Panel]:
    """The panels of the released notebook, from its seed: one positive step, three negative ones, and one of both."""
    rng = np.random.RandomState(SEED)
    x = rng.randn(FEATURES)
    norm = float(x @ x)
    plain = x @ rng.randn(FEATURES, CLASSES)
    flat = x @ (1 + 0.05 * rng.randn(FEATURES, CLASSES))
    z = x @ rng.randn(FEATURES, CLASSES)
    peaky = z - norm * (np.exp(log_softmax(z)) - np.isin(np.arange(CLASSES), PEAKS))
    both = peaky + 0.5 * norm * (np.eye(CLASSES)[25] - np.eye(CLASSES)[42])  # the two p cancel
    after = {
        ("A: positive", 21): (plain, step(plain, 21, 0.5 * norm)),
        ("B: negative, flat", 42): (flat, step(flat, 42, -0.3 * norm)),
        ("C: negative, on a peak", 11): (peaky, step(peaky, 11, -0.5 * norm)),
        ("D: negative, in a valley", 42): (peaky, step(peaky, 42, -0.5 * norm)),
        ("D as released: and a positive on 25", 42): (peaky, both),
    }
    return [Panel(name, label, *(np.exp(log_softmax(z)) for z in pair)) for (name, label), pair in after.items()]
