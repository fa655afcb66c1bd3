"""What the evaluators of a run measured reaches the study of it."""

import numpy as np

from premem_jax.analysis.readers import read_runs


def test_measures_of_a_run_are_read_by_the_study(straight):
    [run] = read_runs(straight.workdir)
    due_M = np.isin(run.trace.steps, (10, 12))
    [(name, values)] = run.measures.items()
    assert name == "distance_from_initialization"
    np.testing.assert_array_equal(np.isfinite(values), due_M)
    assert np.all(np.diff(values[due_M]) > 0)


def test_the_distance_is_between_the_checkpoint_and_the_cached_base(straight):
    """Both as Orbax wrote them."""
    [run], [base] = read_runs(straight.workdir), straight.cache.glob("base-*")
    from tests.processes import Run

    of_base, of_end = Run(base, straight.cache), straight
    begin, end = of_base.checkpoint(of_base.saved[-1]), of_end.checkpoint(12)
    names = [name for name in end if "['params']" in name and "embedding" not in name and "head" not in name]
    assert len(names) > 8
    expected = sum(np.sum((end[name].astype(np.float64) - begin[name]) ** 2) for name in names)
    np.testing.assert_allclose(run.measures["distance_from_initialization"][-1], expected, rtol=1e-5)
