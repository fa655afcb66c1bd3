"""The graders in plain Python: rule by rule, and against the labels that others made with the same rules."""

import pytest

from premem_jax.grading.normal_form import normal_form, written_with_slash
from premem_jax.grading.reference import equal, find_answer, grade_bytes
from premem_jax.grading.rules import MATH, Phrase, rules_of
from premem_jax.grading.verdict import Verdict
from tests.grading.cases import ANSWERS, EQUAL, FORMS, UNEQUAL
from tests.grading.vocabularies import jsonl


def encoded(text):
    return None if text is None else text.encode()


@pytest.mark.parametrize("rules,text,answer", ANSWERS)
def test_answers_are_found(rules, text, answer):
    assert find_answer(text.encode(), rules) == encoded(answer)


@pytest.mark.parametrize("text,form", FORMS)
def test_normal_forms(text, form):
    assert normal_form(text.encode()) == encoded(form)


@pytest.mark.parametrize(
    "text,form",
    [
        (b"\\sqrt{\x80}", b"\\sqrt{\x80}"),
        (b"\\frac1{\x80}", b"\\frac{1}{\x80}"),
        (b"\\sqrt\xc3\x80\x80x", b"\\sqrt{\xc3\x80\x80}x"),
        (b"\\sqrt1\x80", b"\\sqrt{1\x80}"),
    ],
)
def test_bytes_that_are_no_text_have_a_normal_form(text, form):
    assert normal_form(text) == form


@pytest.mark.parametrize("one,other", EQUAL)
def test_equal(one, other):
    assert equal(encoded(one), encoded(other)) and equal(encoded(other), encoded(one))


@pytest.mark.parametrize("one,other", UNEQUAL)
def test_unequal(one, other):
    assert not equal(encoded(one), encoded(other)) and not equal(encoded(other), encoded(one))


@pytest.mark.parametrize(
    "text,answer,verdict",
    [
        (b"#### 18", b"18", Verdict.CORRECT),
        (b"#### 1,800", b"1800", Verdict.CORRECT),
        (b"#### 1800", b"1,800", Verdict.CORRECT),
        (b"#### 19", b"18", Verdict.WRONG),
        (b"#### ", b"18", Verdict.WRONG),
        (b"18", b"18", Verdict.UNPARSED),
        (b"18", None, Verdict.CORRECT),
        (b"#### 18", None, Verdict.WRONG),
    ],
)
def test_verdicts(text, answer, verdict):
    assert grade_bytes(text, answer, "gsm8k") is verdict


def test_verdict_codes_are_those_of_published_traces():
    assert [int(v) for v in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED)] == [0, 1, 2]


def test_every_published_label_of_hendrycks_rule():
    rows = jsonl("data/outputs/math_pairs.jsonl")
    assert len(rows) == 447
    for row in rows:
        assert equal(encoded(row["pred"]), encoded(row["gt"])) == row["hendrycks_is_equiv"], row


def test_every_unit_test_of_hendrycks():
    rows = [row for row in jsonl("data/outputs/math_unit_pairs.jsonl") if row["source"] == "hendrycks/math"]
    assert len(rows) == 16
    for row in rows:
        assert equal(encoded(row["pred"]), encoded(row["gold"])) == row["label"], row


def test_slash_is_the_other_way_to_write_a_fraction():
    assert written_with_slash(rb"\frac{-3}{4}") == b"-3/4" and normal_form(b"-3/4") == rb"\frac{-3}{4}"
    for form in (rb"\frac{03}{4}", rb"\frac{-0}{4}", rb"\frac{a}{4}", rb"\frac{1}{2}x", b"3/4"):
        assert written_with_slash(form) is None


def test_wrong_rules_are_named():
    with pytest.raises(ValueError, match="no grading rules 'maths'; there are gsm8k, math"):
        find_answer(b"", "maths")
    with pytest.raises(ValueError, match="a phrase of the grading rules is empty"):
        rules_of(MATH._replace(phrases=(Phrase(b""),)))
