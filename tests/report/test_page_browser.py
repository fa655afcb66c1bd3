"""The pages as people use them, in headless Chromium, against numbers computed here one by one."""

import math
import time

import numpy as np
import pytest

from configs import analyze as config_file
from premem_jax.analysis import curves, threshold, trace
from premem_jax.experiments import analyze
from premem_jax.report import drawing
from premem_jax.report import page as report_page
from tests.analysis.traces import synthetic_splits
from tests.report.browser import CUT, broken_images, columns, ids, launched, misfits, opened

HOSTILE = (
    "</script><script>alert('script')</script><!-- <script> <img src=x onerror=alert(1)> </script x <!-- <script "
    "\"'`&amp;&lt; {{ 7 * 7 }} \\ \\u003c",
    "Ünïcödé ∑ 数学 עברית 🤖 \u2028 \u202e \ud800 \x00 end",
    "long " + "x" * 60_000 + " end",
)
EPOCHS, EXAMPLES, LIMIT = (0.5, 1, 2, 4, 8), 120, 0.1
NAME = "test 50% </script> <b>&\"'é/1"  # of a split


class Made:
    """A run's report, and what went into it."""

    def __init__(self, folder):
        self.examples, self.samples = [], []
        for epoch in EPOCHS:
            splits = synthetic_splits(3, epoch, examples=EXAMPLES)
            splits["train"]["correct"][::7] = 0  # never solved
            splits["train"]["unparsed"][::7] = 1
            splits["train"]["example"] = 10 + 3 * np.arange(EXAMPLES)
            splits[NAME] = splits.pop("test")
            splits["watched"] = splits[NAME] | {"target_nll": splits["train"]["target_nll"]}
            trace.write_evaluation(folder / "trace", round(100 * epoch), epoch, splits)
        self.trace = trace.read_trace(folder / "trace")
        self.train = self.trace.splits["train"]
        for row, id in enumerate(self.train.example.tolist()):
            hostile = HOSTILE[row] if row < len(HOSTILE) else ""
            texts = dict(prompt=f"Question {id} {hostile}\nAnswer:", reference=f"Solution\n{id % 7} {hostile}")
            self.examples.append(dict(split="train", example=id, **texts))
        for step, id in [(800, 10), (50, 10), (800, 13), (800, 16)]:
            of = HOSTILE[(id - 10) // 3]
            drawn = [*2 * [dict(text=of, verdict="wrong")], dict(text=f"{step} {id}", verdict="correct")]
            self.samples.append(dict(step=step, split="train", example=id, responses=drawn))
        chosen = threshold.given(math.exp(LIMIT))
        seen = curves.run_curves(self.trace, chosen, test=NAME)
        self.path = report_page.write_report(
            folder, self.trace, seen, chosen, {"name": HOSTILE[0]}, self.examples, self.samples
        )

    def values(self, row: int) -> dict[str, float]:
        """The columns of an example of the training split, one evaluation after the other."""
        best = 0.0
        memorized = math.inf
        for m, epoch in enumerate(EPOCHS):
            nll, accuracy = self.train.nll[m, row], self.train.correct[m, row] / self.train.samples[m, row]
            if nll >= LIMIT:
                best = max(best, accuracy)
            else:
                memorized = min(memorized, epoch)
        solved = any(self.train.correct[m, row] for m in range(len(EPOCHS)))
        texts = dict(text=self.examples[row]["prompt"], memorized=memorized, tokens=90, solved=solved)
        return texts | dict(example=10 + 3 * row, premem=min(best, accuracy), accuracy=accuracy, nll=nll)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser, made):
    with opened(browser, made.path) as page:
        yield page


def choose(page, group: str) -> None:
    page.locator("#groups button", has_text=group).click()


# ---- The report of a run ---------------------------------------------------------------------------------------------


def test_it_opens_with_pictures_and_the_whole_table(page, made):
    assert broken_images(page) == [] and page.locator("img").count() == 2
    table = columns(page)
    expected = [made.values(row) for row in range(EXAMPLES)]
    assert table["example"] == [str(row["example"]) for row in expected]
    for name in ("premem", "accuracy"):
        assert [float(x.removesuffix(" %")) / 100 for x in table[name]] == [row[name] for row in expected]
    np.testing.assert_allclose(list(map(float, table["nll"])), [row["nll"] for row in expected], rtol=0.051)
    shown = ["–" if math.isinf(row["memorized"]) else f"{row['memorized']:g}" for row in expected]
    assert table["memorized"] == shown and len(set(shown)) > 3
    assert table["tokens"] == ["90"] * EXAMPLES
    assert page.locator("#found").text_content() == f"{EXAMPLES} of {EXAMPLES}"


@pytest.mark.parametrize("column", ["example", "premem", "accuracy", "nll", "memorized", "tokens"])
def test_each_column_sorts_both_ways(page, made, column):
    rows = [made.values(row) for row in range(EXAMPLES)]
    head = page.locator(f"th.{column}")
    directions = set()
    for _ in range(2):
        head.locator("button").click()
        direction = head.get_attribute("aria-sort")
        sign = -1 if direction == "descending" else 1
        expected = sorted(rows, key=lambda row: (sign * row[column], row["example"]))
        assert ids(page) == [row["example"] for row in expected]
        directions.add(direction)
    assert directions == {"ascending", "descending"}


FILTERS = {
    "all": lambda row: True,
    "memorized": lambda row: row["nll"] < LIMIT,
    "fragile": lambda row: row["accuracy"] > 0.6 and row["premem"] < 0.4,  # of four samples
    "never solved": lambda row: not row["solved"],
}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_shows_its_examples(page, made, name):
    expected = [row["example"] for row in map(made.values, range(EXAMPLES)) if FILTERS[name](row)]
    assert len(expected) > 0 and (name == "all" or len(expected) < EXAMPLES)
    choose(page, name)
    assert ids(page) == expected
    assert page.locator("#groups button", has_text=name).text_content() == f"{name} {len(expected)}"


@pytest.mark.parametrize("query", ["QUESTION 1", "solution 3", "</SCRIPT>", "\"'`&", "数学", "e", "\\u003c", "nowhere"])
def test_search_looks_through_questions_and_reference_solutions(page, made, query):
    def matches(row):
        return any(query.lower() in row[key].lower().replace("\n", " ") for key in ("prompt", "reference"))

    expected = [row["example"] for row in made.examples if matches(row)]
    assert bool(expected) == (query != "nowhere")
    page.fill("#search", query)
    assert ids(page) == expected
    choose(page, "memorized")
    memorized = {row["example"] for row in map(made.values, range(EXAMPLES)) if FILTERS["memorized"](row)}
    assert ids(page) == [id for id in expected if id in memorized]
    page.fill("#search", "")
    assert len(ids(page)) == len(memorized)


def test_an_example_is_shown_with_its_texts(page, made):
    for row, hostile in enumerate(HOSTILE):
        example, as_shown = made.examples[row], hostile.replace("\ud800", "\ufffd")
        page.locator("#body tr:not(.space)").nth(row).click()
        detail = page.locator("#detail")
        assert detail.locator("h3").text_content().startswith(f"train example {example['example']} ")
        shown = [text.replace("\ud800", "\ufffd") for text in detail.locator("pre").all_text_contents()]
        assert shown[:2] == [example[key].replace(hostile, as_shown) for key in ("prompt", "reference")]
        assert shown[2:4] == [f"wrong, 2 times{as_shown}", f"correct800 {example['example']}"]
        assert detail.locator("details").count() == (2 if row == 0 else 1)
    assert page.evaluate("document.scripts.length") == 2  # the data and ours
    assert page.locator("#detail :is(script, img, b)").count() == 0
    page.locator("#body tr:not(.space)").nth(5).click()
    assert "not kept" in page.locator("#detail").text_content()
    correct, samples = (int(x[-1, 5]) for x in (made.train.correct, made.train.samples))
    assert f"step 800: {correct} of {samples} correct" in page.locator("#detail").text_content()


def test_the_chart_shows_the_example(page, made):
    for row in (3, 4, 20):
        page.locator("#body tr:not(.space)").nth(row).click()
        dots = {
            kind: page.locator(f"#detail circle.{kind}").evaluate_all(
                "dots => dots.map(d => [+d.getAttribute('cx'), +d.getAttribute('cy'), d.classList.contains('hollow')])"
            )
            for kind in ("accuracy", "premem", "nll")
        }
        ticks = dict(
            page.locator("#detail text.end").evaluate_all("all => all.map(t => [t.textContent, +t.getAttribute('y')])")
        )
        accuracy = [(y + 4 - ticks["0"]) / (ticks["1"] - ticks["0"]) for _, y, _ in dots["accuracy"]]
        np.testing.assert_allclose(accuracy, made.train.correct[:, row] / made.train.samples[:, row], atol=1e-6)
        premem = (dots["premem"][-1][1] + 4 - ticks["0"]) / (ticks["1"] - ticks["0"])
        assert premem == pytest.approx(made.values(row)["premem"], abs=1e-6)
        x = np.array([x for x, _, _ in dots["nll"]])
        np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), (np.array(EPOCHS) - 0.5) / 7.5, atol=1e-6)
        points = page.locator("#detail polyline.threshold").get_attribute("points").split()
        [line] = {float(point.split(",")[1]) for point in points}
        below = (made.train.nll[:, row] < LIMIT).tolist()
        assert [y > line for _, y, _ in dots["nll"]] == [hollow for _, _, hollow in dots["accuracy"]] == below
        y = np.array([y for _, y, _ in dots["nll"]])
        slope = np.diff(y) / np.diff(np.log(np.maximum(made.train.nll[:, row], 1e-5)))
        np.testing.assert_allclose(slope, slope[0], rtol=1e-4)  # a logarithmic axis


def test_the_other_split_has_no_memorization(page, made):
    page.select_option("#split", NAME)
    assert page.locator("#groups button").all_text_contents()[0] == f"all {EXAMPLES}"
    assert not {"fragile", "memorized"} & {
        text.split()[0] for text in page.locator("#groups button").all_text_contents()
    }
    table = columns(page)
    accuracy = made.trace.splits[NAME].accuracy[-1]
    assert [float(x.removesuffix(" %")) / 100 for x in table["accuracy"]] == accuracy.tolist()
    assert set(table["premem"] + table["nll"] + table["memorized"]) == {"–"}
    assert page.locator("#detail circle.premem, #detail circle.nll").count() == 0


def test_only_the_split_trained_on_has_pre_memorization_accuracy(page):
    page.select_option("#split", "watched")
    names = [text.split()[0] for text in page.locator("#groups button").all_text_contents()]
    assert names == ["all", "memorized", "never"]
    table = columns(page)
    assert set(table["premem"]) == {"–"} and "–" not in table["nll"] + table["accuracy"]


def test_keys_and_links_lead_to_an_example(browser, page, made):
    page.locator("#rows").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("tr.selected .example").text_content() == "16"
    page.keyboard.press("End")
    assert page.locator("tr.selected .example").text_content() == str(10 + 3 * (EXAMPLES - 1))
    assert page.locator("tr.selected").is_visible()
    page.select_option("#split", NAME)
    page.locator("#body tr:not(.space)").nth(2).click()
    with opened(browser, made.path, page.evaluate("location.hash")) as other:
        assert other.locator("#detail h3").text_content().startswith(f"{NAME} example 2 ")
        assert other.input_value("#split") == NAME
        other.evaluate("location.hash = '#train/13'")
        other.wait_for_function("document.querySelector('#detail h3').textContent.startsWith('train example 13 ')")


def test_dark_and_narrow_pages_stay_readable(browser, made):
    with opened(browser, made.path, color_scheme="dark") as page:
        page.set_viewport_size({"width": 480, "height": 800})
        back, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) for color in (back, ink)]
        assert brightness[0] < 150 and brightness[1] > 600
        assert page.evaluate("document.documentElement.scrollWidth") <= 480
        assert page.locator("#rows").bounding_box()["height"] > 300


def test_nothing_of_a_run_is_cut_off_or_too_small(browser, made):
    with opened(browser, made.path) as page:
        assert misfits(page) == [] and page.locator("img").count() == 2
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#body tr").nth(3).click()
        assert page.locator("#detail h3").is_visible() and page.evaluate(CUT)[:2] == [False, []]
        text, width_of = (
            page.locator("#rows th.text, #rows td.text").last,
            page.locator("#rows").bounding_box()["width"],
        )
        assert text.bounding_box()["width"] > 0.25 * width_of
        assert "What the metric is" in page.content() and "What to do next" in page.content()


def test_what_all_prompts_begin_with_is_left_out_of_the_table(browser, tmp_path):
    head, questions = (
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\n",
        ["What is 1 ?", "What is 12 ?"],
    )
    trace.write_evaluation(tmp_path / "trace", 1, 1, synthetic_splits(3, 1, examples=2))
    read, chosen = trace.read_trace(tmp_path / "trace"), threshold.given(1.1)
    rows = [dict(split="train", example=i, prompt=head + said, reference="a") for i, said in enumerate(questions)]
    path = report_page.write_report(tmp_path, read, curves.run_curves(read, chosen), chosen, {}, rows, [])
    with opened(browser, path) as page:
        assert columns(page)["text"] == ["… 1 ?", "… 12 ?"]
        assert page.locator("#detail pre").all_text_contents()[0] == head + questions[0]


def test_eight_thousand_examples_open_quickly(browser, tmp_path, capsys):
    """The time is printed, for a busy machine would make it a matter of luck; what makes it short is asserted."""
    count, evaluations = 8000, 10
    for evaluation in range(evaluations):
        trace.write_evaluation(tmp_path / "trace", evaluation, evaluation, synthetic_splits(5, evaluation, count))
    read, chosen = trace.read_trace(tmp_path / "trace"), threshold.given(1.1)
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(3000)])
    texts = [" ".join(words[rng.integers(3000, size=100)]) for _ in range(count)]
    rows = [dict(split="train", example=i, prompt=text[:300], reference=text[300:]) for i, text in enumerate(texts)]
    path = report_page.write_report(tmp_path, read, curves.run_curves(read, chosen), chosen, {}, rows, [])
    with opened(browser, path) as page:
        taken = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        assert page.locator("#body tr").count() < 100
        began = time.perf_counter()
        page.fill("#search", texts[-1][:60])
        assert ids(page) == [count - 1]
        searched = time.perf_counter() - began
        page.fill("#search", "")
        page.locator("#rows").press("End")
        assert page.locator("tr.selected .example").text_content() == str(count - 1)
    with capsys.disabled():
        print(
            f"\n{path.stat().st_size / 1e6:.1f} MB with {count} examples x {evaluations} evaluations: opened in "
            f"{taken:.0f} ms, searched in {1000 * searched:.0f} ms"
        )


# ---- The report of a study -------------------------------------------------------------------------------------------


def test_the_page_of_a_study(browser, tmp_path):
    names = [f"{i} {HOSTILE[0]}" for i in range(3)]
    rng, rows = np.random.default_rng(0), []
    for run, speed in zip(names, (0.4, 0.8, 1.2), strict=True):
        for step in (100, 200, 300):
            for example in range(160):
                split = "train" if example < 100 else "heldout"
                nll = rng.gamma(4.0, 0.15) * (np.exp(-speed * step / 100) if split == "train" else 1.0)
                correct = rng.binomial(5, 0.95 if nll < 0.1 else 0.3 + step / 1000)
                # test accuracy hardly moves, so that R² is far below zero and its numbers are long
                rows.append((run, step, example, split, nll, 5, correct, 0.28 + step / 6000, HOSTILE[0]))
    keys = ("run", "step", "example", "split", "nll", "n_samples", "n_correct", "test_accuracy", "task")
    np.savez(tmp_path / "runs.npz", **{k: np.array(x) for k, x in zip(keys, zip(*rows, strict=True), strict=True)})
    config = config_file.get_config()
    config.update(traces=str(tmp_path / "runs.npz"), draws=10)
    summary = analyze.run(config, tmp_path / "study")
    [task] = summary["tasks"].values()
    with opened(browser, tmp_path / "study" / "report.html") as page:
        assert page.locator("img").count() == 4 and broken_images(page) == []
        assert page.locator("script").count() == 0
        assert misfits(page) == []
        assert "What the metric is" in page.content() and "What to do next" in page.content()
        runs = page.locator("h2", has_text="Runs, at their last").locator("xpath=following::table[1]")
        assert [run["run"] for run in task["run_table"]] == names
        assert runs.locator("td.name").all_text_contents() == [drawing.shown(name) for name in names]
        r2 = task["predictors"]["pre_memorization_accuracy"]["r2_identity"]
        assert f"R² = {r2:.4f}" in page.locator(".headline").text_content()
