import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from premem_jax.analysis import curves, threshold, trace
from premem_jax.errors import UserError
from premem_jax.report import figures, page
from tests.analysis.traces import synthetic_splits

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = "<script>alert('x')</script> & \"quotes\" see http://example.org/a.png"


class Tags(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


EXAMPLES = [dict(split="train", example=i, prompt=f"prompt {i} {HOSTILE}", reference="ref") for i in range(80)]


def sample(step, example=3, text=HOSTILE, verdict="wrong"):
    return dict(step=step, split="train", example=example, responses=[dict(text=text, verdict=verdict)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    for evaluation in (1, 2, 3, 4):
        splits = synthetic_splits(0, evaluation, examples=80)
        if evaluation == 4:
            del splits["test"]
        trace.write_evaluation(folder, evaluation * 1000, evaluation, splits)
    chosen = threshold.given(1.1)
    read = trace.read_trace(folder)
    return read, curves.run_curves(read, chosen), chosen


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("workdir")
    samples = [sample(2000), sample(1000, text="later in the list", verdict="correct"), sample(1000, example=9)]
    summary = {"name": HOSTILE, "learning_rate": 2e-5, "model": "tiny"}
    path = page.write_report(workdir, *run, summary, EXAMPLES, samples)
    assert path == workdir / "report.html"
    return workdir, path.read_text(encoding="utf-8")


def test_the_page_asks_the_network_for_nothing(report):
    for tag, attributes in Tags(report[1]).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster", "style"):
                assert value.startswith("data:image/png;base64,")
    style = re.search(r"<style>(.*?)</style>", report[1], re.S)[1]
    assert "url(" not in style and "@import" not in style


def test_the_page_holds_each_picture(report):
    workdir, html = report
    embedded = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    files = [(workdir / "figures" / name).read_bytes() for name in ("curves.png", "examples.png")]
    assert embedded == files
    assert all(file.startswith(PNG) for file in files)
    assert sorted(path.name for path in workdir.rglob("*") if path.is_file()) == [
        "curves.png",
        "curves_narrow.png",
        "examples.png",
        "examples_narrow.png",
        "report.html",
    ]


def scripts(html):
    """The text of each script element, as a browser finds its end."""
    return re.findall(r"<script[^>]*>(.*?)</script", html, re.S | re.I)


def test_only_our_script_may_run(report):
    """One element of data, and one of code, which the policy knows by its SHA-256."""
    _, code = scripts(report[1])
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    [policy] = [tag["content"] for _, tag in Tags(report[1]).tags if tag.get("http-equiv")]
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" == policy
    assert HOSTILE in Tags(report[1]).text  # the name of the run


def test_the_data_hold_each_text_once_and_as_it_is(report):
    data = json.loads(scripts(report[1])[0])
    assert data["texts"] == [
        "",
        *sorted({row["prompt"] for row in EXAMPLES} | {"ref", HOSTILE, "later in the list"}, key=data["texts"].index),
    ]
    assert [split["name"] for split in data["splits"]] == ["train", "test"]
    train = data["splits"][0]
    text = data["texts"].index
    assert train["responses"] == {
        "3": {"0": [[text("later in the list"), 0]], "1": [[text(HOSTILE), 1]]},
        "9": {"0": [[text(HOSTILE), 1]]},
    }


def test_the_tables_hold_the_numbers(report, run):
    _, run_curves, chosen = run
    text = Tags(report[1]).text
    for name in ("train_accuracy", "pre_memorization_accuracy", "test_accuracy", "train_nll"):
        for value in run_curves[name]:
            assert (f"{value:.4f}" if np.isfinite(value) else "–") in text
    for fact in ("2e-05", "learning rate", "tiny", "1,000", f"{chosen.at_end:.4f}", "given"):
        assert fact in text


def flat_curves(premem, test, train=(0.5, 0.9)):
    return {
        "epoch": np.array([1.0, 2.5]),
        "pre_memorization_accuracy": np.array(premem),
        "estimate": np.array(premem) - 0.01,
        "estimate_error": np.full(2, 0.02),
        "test_accuracy": np.array(test),
        "test_accuracy_error": np.full(2, 0.03),
        "train_accuracy": np.array(train),
    }


@pytest.mark.parametrize(
    ("premem", "test", "says"),
    [
        (
            [0.4, 0.5],
            [0.4, 0.525],
            r"At epoch 2\.5.*49\.0% \(95 % interval 45\.1 to 52\.9\).*50\.0% as published.*90\.0%\. The measured.*"
            r"52\.5% \(95 % interval 46\.6 to 58\.4\): .*-3\.5 ± 7\.1 points",
        ),
        ([0.4, 0.5], [0.45, np.nan], r"45\.0% \(95 % interval 39\.1 to 50\.9\) \(at epoch 1\): .*\+4\.0 ± 7\.1 points"),
        ([0.4, np.nan], [0.3, 0.6], r"At epoch 1.*39\.0%.*50\.0%\. The measured.*30\.0%.*\+9\.0 ± 7\.1 points"),
        ([0.4, 0.5], [np.nan, np.nan], r"Test accuracy was not measured\. Of 13 finetunes"),
    ],
)
def test_the_headline_compares_what_was_measured(premem, test, says):
    assert re.search(says, page.headline(flat_curves(premem, test), {"task": "gsm8k", "extrapolation": 0.495}))


def test_the_headline_warns_where_more_samples_would_change_the_published_value():
    says = [page.headline(flat_curves([0.4, 0.5], [0.4, 0.5]), {"extrapolation": x}) for x in (0.48, 0.491, None)]
    assert "extrapolated to many, it is 48.0%, -2.0 points" in says[0]
    assert all("extrapolated" not in text and "No finetunes of this task are on record" in text for text in says[1:])


def test_an_unknown_verdict_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="'maybe'"):
        page.write_report(tmp_path, *run, {}, [], [sample(1, verdict="maybe")])
    assert not list(tmp_path.iterdir())


def test_rows_are_averaged_only_with_their_neighbours():
    axes = figures.Figure().subplots()
    values = np.repeat(np.arange(10) / 10, 3)[:, None] * [1, 0.5]
    values[-1, 1] = np.nan
    image = figures._rows_image(axes, values, most=10)
    np.testing.assert_allclose(image.get_array().filled(np.nan), np.arange(10)[:, None] / 10 * [1, 0.5], atol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("examples", [1, 900])
def test_pictures_of_small_large_and_patchy_traces(tmp_path, examples):
    """One evaluation; many rows; a row never seen; a split never sampled: drawn without a warning, or refused."""
    splits = synthetic_splits(1, 1, examples=examples)
    for column in ("samples", "correct", "unparsed"):
        splits["train"][column][1:3] = 0
    trace.write_evaluation(tmp_path, 1, 0.5, splits)
    read = trace.read_trace(tmp_path)
    figures.curves_figure(curves.run_curves(read, threshold.given(1.5)), tmp_path / "curves.png")
    figures.examples_figure(read, threshold.given(1.5), tmp_path / "deep" / "examples.png")
    assert (tmp_path / "deep" / "examples.png").read_bytes().startswith(PNG)
    with pytest.raises(UserError, match="nothing to draw"):
        figures.examples_figure(read, threshold.given(1.5), tmp_path / "no.png", train="test")
