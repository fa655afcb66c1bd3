"""Whether sizes agree at equal loss, on curves that do and that do not."""

import numpy as np
import pytest

from premem_jax.analysis.emergence_gates import alike
from premem_jax.analysis.emergence_law import Law, planted
from premem_jax.analysis.emergence_table import Rows

LAW = Law("log_power_law", 3, 1000, 2.0, 2.6, 1.5, slope=0.4, floor=0.02, fewshot_floor=0.02)
ITEMS = 1000


def two_sizes(seed, shift=0.0) -> tuple[Rows, np.ndarray]:
    """Binomial accuracies of the law at losses of two sizes; the larger's curve is off by `shift` nats."""
    rng, parts, sizes = np.random.default_rng(seed), [], []
    for size, losses, off in ((64, np.linspace(2.9, 1.6, 9), 0), (96, np.linspace(2.8, 1.3, 10), shift)):
        rows = planted(LAW, losses - off, (30, 1000))
        right = rng.binomial(ITEMS, rows.accuracy)
        parts.append(rows._replace(loss=rows.loss + off, accuracy=right / ITEMS, items=np.full(len(right), ITEMS)))
        sizes += [size] * len(right)
    return Rows(*map(np.concatenate, zip(*parts, strict=True))), np.array(sizes)


def test_one_curve_for_all_sizes_passes_and_a_shifted_one_does_not():
    same = [alike(*two_sizes(seed)) for seed in range(20)]
    assert np.mean([found.holds for found in same]) >= 0.9 and {found.points for found in same} == {24}
    assert abs(np.mean([found.difference for found in same])) < 0.002
    assert all(0.005 < found.standard_error < 0.025 for found in same)
    off = [alike(*two_sizes(seed, shift=0.3)) for seed in range(20)]
    assert not any(found.holds for found in off)
    assert np.mean([found.difference for found in off]) == pytest.approx(0.3 * 0.4, abs=0.05)


def test_sizes_without_common_losses_are_not_compared():
    rows, sizes = two_sizes(0)
    apart = (sizes == 64) & (rows.loss > 2.0) | (sizes == 96) & (rows.loss < 1.9)
    assert alike(rows.where(apart), sizes[apart]) is None
    assert alike(rows.where(sizes == 64), sizes[sizes == 64]) is None
