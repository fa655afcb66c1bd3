"""Graders by name: what they take from a text, and what they call equal."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.errors import UserError
from premem_jax.grading import second_opinion
from premem_jax.grading.named import NAMES, find, guess
from premem_jax.grading.verdict import Verdict

CORRECT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED


def verdict(name, response, answer):
    return find(name).grader.host(response.encode(), answer)


@pytest.mark.parametrize(
    ("name", "response", "answer", "expected"),
    [
        ("exact", " Paris\n", "Paris", CORRECT),
        ("exact", " paris", "Paris", WRONG),
        ("exact", " ", "Paris", UNPARSED),
        ("last_line", "so\n\n Paris \n", "Paris", CORRECT),
        ("number", " She has 1,234.0 coins.", "1234", CORRECT),
        ("number", " 3 + 4 = 7. So 7", "8", WRONG),
        ("number", " none", "8", UNPARSED),
        ("number", " it is 3/4 of it", "0.75", CORRECT),
        ("number", " it costs $-5", "-5", CORRECT),
        ("number", " version v2", "2", UNPARSED),
        ("number:0.01", " about 101", "100.5", CORRECT),
        ("number:0.01", " about 103", "100.5", WRONG),
        ("number", " 1/0", "1", WRONG),
        ("number", f" so {'7' * 5000}", "7", WRONG),  # as models do that repeat themselves
        ("number:0.01", f" so 0.{'3' * 5000}", "0.3333", WRONG),
        ("choice", " The answer is (B), not A.", "B", CORRECT),
        ("choice", " Answer: C", "(C)", CORRECT),
        ("choice", " A dog", "A", UNPARSED),
        ("choice", "D", "d", WRONG),
        ("boxed", r" so $\boxed{\frac12}$.", r"\frac{1}{2}", CORRECT),
        ("boxed", " so 1/2", r"\frac{1}{2}", UNPARSED),
        ("gsm8k", " so\n#### 18", "18", CORRECT),
        ("math", " The answer is $x$.", "x", CORRECT),
        (r"regex:ANS=(\w+)", " ANS=a ANS=b", "b", CORRECT),
        (r"regex:ANS=(\w+)", " ANS=", "b", UNPARSED),
    ],
)
def test_verdicts(name, response, answer, expected):
    assert verdict(name, response, answer) == expected


def test_math_verify_compares_as_mathematics():
    pytest.importorskip("math_verify", reason="pip install -e '.[verify]' brings math-verify")
    half = r"so $\boxed{\frac{2}{4}}$"
    cases = [
        (half, "1/2", CORRECT),
        (half, "0.4", WRONG),
        ("no idea", "1", UNPARSED),
        (r"\boxed{9^{9^{9^9}}}", "1", WRONG),
    ]
    began = second_opinion.verdict("1", "1")  # the process starts
    assert [verdict("math_verify", said, answer) for said, answer, _ in cases[:3]] == [want for *_, want in cases[:3]]
    assert second_opinion.verdict(*cases[3][:2], deadline=1) == WRONG and began == CORRECT
    assert find("math_verify").extract(half) == r"\frac{2}{4}"


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**4), st.sampled_from(["{}", " it is {} .", "so:\n${}.\n"]))
def test_a_number_is_found_however_it_is_written(numerator, denominator, text):
    value = Fraction(numerator, denominator)
    assert verdict("number", text.format(f"{numerator}/{denominator}"), str(value)) == CORRECT
    assert verdict("number", text.format(f"{numerator:,}"), str(numerator)) == CORRECT
    assert verdict("number", text.format(numerator), str(numerator + 1)) == WRONG


@given(st.text(max_size=60), st.sampled_from([name for name in NAMES if name not in ("none", "math_verify")]))
def test_any_text_has_a_verdict_and_a_target_is_its_own_answer(text, name):
    grader = find(name)
    answer = grader.extract(text)
    assert grader.grader.host(text.encode(), answer or "") in (CORRECT if answer else UNPARSED, UNPARSED)


@pytest.mark.parametrize(
    "name, one, same, other",
    [
        ("number", "so 1,234.50", "1234.5", "1234"),
        ("choice", "The answer is (B).", "B", "(C)"),
        ("boxed", r"\boxed{\frac12}", r"it is \boxed{1/2}", r"\boxed{2}"),
        ("gsm8k", "#### 1,000", "#### 1000", "#### 100"),
        ("last_line", "a\nb\n", "b", "a"),
    ],
)
def test_answers_agree_by_their_normal_forms(name, one, same, other):
    answer = find(name).grader.answer
    assert answer(one.encode()) == answer(same.encode()) != answer(other.encode())
    assert answer(b"") is None


def test_the_grader_is_seen_from_the_targets():
    assert guess([" a #### 3", " b\n#### 4"]) == "gsm8k"
    assert guess([r" $\boxed{3}$"]) == "boxed"
    assert guess([" (A)", " C"]) == "choice"
    assert guess([" it is 3", " 4.5"]) == "number"
    assert guess([" it is 3", " no"]) == "exact"


def test_a_function_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def ends(response, answer):\n    return response.strip().endswith(answer)\n")
    grader = f"python:{tmp_path}/mine.py:ends"
    assert verdict(grader, " it is blue\n", "blue") == CORRECT and verdict(grader, "red", "blue") == WRONG
    assert find(grader).extract is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numbr", "data.grader='numbr': there is exact, last_line, number"),
        ("number:x", "tolerance"),
        ("number:2", "tolerance"),
        ("regex:(", "data.grader='regex:\\('"),
        ("regex:", "there is exact"),
        ("python:missing.py:f", "no file 'missing.py'"),
        ("python:f", "no file ''"),
        ("python:~nobody-here/f.py:f", "no file '~nobody"),
    ],
)
def test_a_name_that_makes_no_sense_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        find(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 /", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import nothing_like_it", "ModuleNotFound"),
        ("g = 1", "no function 'g'"),
    ],
)
def test_a_file_that_does_not_load_is_named(tmp_path, source, message):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(UserError, match=message):
        find(f"python:{tmp_path}/bad.py:g")
