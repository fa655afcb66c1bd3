"""math-verify beside the rules: what it says, what it is asked, and that nothing it does takes longer than allowed."""

import importlib.util
import json
import time

import pytest

from configs import grade as config
from premem_jax.errors import UserError
from premem_jax.experiments import grade
from premem_jax.grading.second_opinion import PACKAGES, math_verify
from tests.grading.vocabularies import jsonl

INSTALLED = all(importlib.util.find_spec(name) for name in PACKAGES)
needs = pytest.mark.skipif(not INSTALLED, reason="needs math-verify: pip install -e '.[verify]'")


def configuration(folder, rows, check="math_verify"):
    c = config.get_config(f"task=math,check={check}")
    c.data.path = str(folder / "rows.jsonl")
    (folder / "rows.jsonl").write_text("".join(json.dumps(dict(output=o, answer=a)) + "\n" for o, a in rows))
    return c


@needs
def test_where_the_two_differ(tmp_path):
    rows = [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}"),  # the same number, another string
        (r"\boxed{3}", "4"),
        (r"\boxed{\{2,1\}}", r"\{1,2\}"),  # the same set
        (r"\boxed{(2,1)}", "(1,2)"),
        ("I do not know", "4"),
    ]
    summary = grade.run(configuration(tmp_path, rows), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "disagreements.jsonl").open()]
    assert [(line["row"], line["verdict"], line["math_verify_correct"], line["output"]) for line in lines] == [
        (2, "wrong", True, rows[1][0]),
        (4, "wrong", True, rows[3][0]),
    ]
    assert summary["correct"] == 1 and summary["math_verify_undecided"] == 0
    assert summary["correct_by_math_verify_alone"] == 2 and summary["correct_by_the_rules_alone"] == 0
    assert summary["math_verify_correct"] == 3 and summary["unparsed"] == 1 and summary["wrong"] == 4


@needs
def test_a_deadline_is_kept_and_costs_no_other_row():
    texts = [r"\boxed{1}", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3}"] * 2
    began = time.monotonic()
    said = math_verify(texts, ["1", "2", "4"] * 2, deadline=3, told=lambda n: None)
    assert said == [True, None, False] * 2
    assert time.monotonic() - began < 60


@needs
@pytest.mark.slow
def test_published_pairs():
    """Its own labels on the pairs of other projects; a newer version may differ on a few."""
    rows = [row for row in jsonl("data/outputs/math_pairs.jsonl") if row.get("math_verify") is not None]
    outputs = [rf"\boxed{{{row['pred']}}}" for row in rows]
    said = math_verify(outputs, [row["gt"] for row in rows], deadline=10, told=lambda n: None)
    assert sum(a == row["math_verify"] for a, row in zip(said, rows, strict=True)) > 0.95 * len(rows)


@pytest.mark.skipif(INSTALLED, reason="math-verify is installed")
def test_a_missing_package_is_named_with_its_installation(tmp_path):
    with pytest.raises(UserError, match=r"math_verify.*pip install -e '\.\[verify\]'"):
        grade.run(configuration(tmp_path, []), tmp_path / "run")


def test_another_check_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"check='math_verfy': must be '' or 'math_verify'"):
        grade.run(configuration(tmp_path, [], check="math_verfy"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
