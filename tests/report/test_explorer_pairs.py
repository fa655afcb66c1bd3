"""The page of a run on pairs in headless Chromium: its table of pairs, their texts, and the figure of split updates."""

import numpy as np
import pytest

from premem_jax.analysis import trace
from premem_jax.analysis.arms import contrasts
from premem_jax.analysis.curves import run_curves
from premem_jax.report import dynamics_page
from premem_jax.report import page as report_page
from premem_jax.running import sealed
from tests.report.browser import broken_images, launched, misfits, opened

IDS = np.array([3, 5, 9])
CHES = {3: -1.5, 5: -20.25, 9: -0.125}
CHANGE = {3: 0.5, 5: -2.0}  # of the last one it is not known


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for step in (0, 4, 8):
        columns = {"example": IDS, "target_nll": np.full(3, 2.0 + step / 8), "target_tokens": np.full(3, 4)}
        said = {"example": IDS, "samples": np.ones(3, int), "correct": np.zeros(3, int)}
        splits = {"train chosen": columns, "train rejected": columns, "test greedy": said}
        trace.write_evaluation(folder / "trace", step, step / 4, splits, {"train_entropy": 1.0})
    for step, phase in ((1, "sft"), (5, "preference"), (8, "preference")):
        sources = ["chosen", *["rejected"] * (phase == "preference"), "momentum", "decay"]
        effects = {name: [0.1 * i, -0.2, step / 10] for i, name in enumerate([*sources, "actual"])}
        found = {kind: {"example": IDS.tolist(), **effects, "norm_of_a": [2.0] * 3} for kind in ("chosen", "rejected")}
        document = {"step": step, "phase": phase, "rate": 1e-3, "norms_of_g": [1.0], "types": found}
        sealed.write_json(folder / "influence" / f"step-{step:08d}.json", document)
    seen = trace.read_trace(folder / "trace")
    texts = lambda split, id: dict(split=split, example=id, prompt=f"Question {id}", reference=f"right {id}")
    examples = [texts("train", id) | {"rejected": f"wrong {id} <b>"} for id in IDS.tolist()]
    examples += [texts("test", id) for id in IDS.tolist()]
    response = [{"text": "said", "verdict": "wrong"}]
    samples = [dict(step=8, split="test greedy", example=3, prompt="Question 3", responses=response)]
    pairs = {"ches": CHES, "change": CHANGE}
    return report_page.write_report(
        folder, seen, run_curves(seen, None), None, {"sft_steps": 4}, examples, samples, pairs=pairs
    )


def test_the_table_of_pairs_has_ches_and_change_and_both_texts(path):
    with launched() as browser, opened(browser, path) as page:
        assert not broken_images(page)
        page.select_option("#split", "train chosen")
        heads = page.locator("#head th").all_text_contents()
        assert heads[-2:] == ["CHES", "change of log π"]
        page.locator("th.change button").click()
        rows = page.locator("#body tr:not(.space)")
        assert [rows.nth(i).locator("td.example").text_content() for i in range(3)] == ["3", "5", "9"]
        assert rows.nth(1).locator("td.ches").text_content() == "−20.3"
        assert [rows.nth(i).locator("td.change").text_content() for i in range(3)] == ["0.5", "−2", "–"]
        rows.nth(1).click()
        detail = page.locator("#detail")
        assert detail.locator("pre").all_text_contents() == ["Question 5", "right 5", "wrong 5 <b>"]
        assert detail.locator("p.label").all_text_contents()[1:3] == ["chosen response", "rejected response"]
        page.select_option("#split", "test greedy")
        assert page.locator("#head th").count() == len(heads) - 2
        page.locator("#body tr:not(.space)").nth(0).click()
        assert detail.locator("pre").all_text_contents()[:2] == ["Question 3", "right 3"]
        assert misfits(page) == [] and page.locator("img").count() == 2


def test_the_page_of_a_study_is_readable_at_all_widths(path, tmp_path):
    seen = trace.read_trace(path.parent / "trace")
    names = [f"{arm}-seed{seed}" for arm in ("sft-off", "sft-on", "on-policy-gated") for seed in (0, 1)]
    values = {name: {f"column_{c}": 10.0 * i + c for c in range(8)} for i, name in enumerate(names)}
    columns = list(values[names[0]])
    drawn = {name: seen for name in names[::2]}
    dynamics_page.write_page(tmp_path, drawn, dict.fromkeys(drawn, 4), values, columns, contrasts(values, columns))
    with launched() as browser, opened(browser, tmp_path / "report.html") as page:
        assert misfits(page) == [] and not broken_images(page)


def test_a_study_with_seeds_compares_its_arms(path, tmp_path):
    seen = trace.read_trace(path.parent / "trace")
    of = {"sft-off": 0.0, "sft-on": 10.0}
    runs = {f"{arm}-seed{seed}": {"margin": base + seed} for arm, base in of.items() for seed in (0, 1)}
    page = dynamics_page.write_page(
        tmp_path, {"sft-off-seed0": seen}, {"sft-off-seed0": 4}, runs, ["margin"], contrasts(runs, ["margin"])
    )
    text = page.read_text()
    assert "sft-on − sft-off" in text and "+10 [10, 10], 2 of 2 above 0" in text and text.count("<tr>") == 2 + 4 + 1
