"""The page of a curation has every number and text, and says where a ratio is beyond what was tried."""

import numpy as np
import pytest
from etils.epath import Path

from premem_jax.analysis.curation import findings, line_up
from premem_jax.analysis.jobs import Job
from premem_jax.experiments.analyze import without_nan
from premem_jax.report.curation_page import write_curation
from tests.report.browser import launched, misfits, opened


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The path of a page, and the points on it."""
    rng, accuracy = np.random.default_rng(0), {}
    for seed in range(4):
        for strategy, added, mean in (("base", 0, 0.3), ("iid", 8, 0.4), ("oracle", 8, 0.6), ("random", 8, 0.38)):
            accuracy[Job(strategy, added, seed).name] = mean + rng.normal(0, 0.03)
    found = line_up(accuracy)
    points = [point | {"seconds": 61.0} for point in findings(found, 16, draws=50, seed=0)]
    types = {"oracle+8-seed0": {"hard": 7, "easy": 1}, "iid+8-seed0": {"easy": 8}}
    base = float(found.base.mean())
    result = {"seeds": found.seeds, "base_accuracy": base, "originals": 16, "points": points}
    result["iid_curve"] = [[16, 24], [0.3, 0.4]]
    texts = {"oracle": [("What is <b> ?", "What is $c$ ?"), ("long " * 80, "longer " * 80)]}
    folder = Path(tmp_path_factory.mktemp("curation"))
    return write_curation(folder, without_nan(result) | {"types": types}, texts), points


def test_numbers_and_texts_are_on_the_page(made):
    path, points = made
    page = path.read_text()
    for point in points:
        assert f"{point['accuracy']:.1%}" in page
    assert "at least ×1.00" in page and "beyond" in page and "Over 4 seeds" in page
    assert "What is &lt;b&gt; ?" in page and "What is $c$ ?" in page


def test_it_is_readable_at_all_widths(made):
    path, _ = made
    with launched() as browser, opened(browser, path) as shown:
        assert misfits(shown) == [] and shown.locator("img").count() == 2
