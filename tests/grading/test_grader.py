"""A grader is one interface: what the host decides, by rules or by somebody's function, and what goes wrong there."""

import operator

import numpy as np
import pytest

from premem_jax.errors import UserError
from premem_jax.grading.grader import SHOWN, by_function, by_rules, grader_of
from premem_jax.grading.rules import GSM8K
from premem_jax.grading.verdict import Verdict
from tests.grading.vocabularies import SINGLE_BYTES, pad_tokens

UNDECIDED = Verdict.UNDECIDED
spell = lambda ids: b"".join(SINGLE_BYTES[i] for i in ids if i < 256)


def resolve(grader, texts, answers, verdicts=None, ids=None):
    tokens_BT, length_B = pad_tokens([text.encode() for text in texts], (len(texts), 1024), 256)
    verdicts = np.full(len(texts), UNDECIDED) if verdicts is None else np.array(verdicts)
    found, asked = grader.resolve(verdicts, tokens_BT, length_B, spell, answers, ids)
    return found.tolist(), asked


def test_a_function_decides_everything_and_sees_text():
    seen = []

    def longer(response, answer):
        seen.append((response, answer))
        return {"é = 2": True, "": Verdict.UNPARSED, "no": np.bool_(False)}[response]

    assert resolve(by_function(longer), ["é = 2", "", "no"], ["2", "3", "4"]) == ([0, 2, 1], 3)
    assert seen == [("é = 2", "2"), ("", "3"), ("no", "4")]
    assert by_function(longer).rules is None


def test_the_host_is_asked_of_what_is_undecided_alone():
    asked = lambda response, answer: response == answer
    given = [Verdict.WRONG, UNDECIDED, Verdict.CORRECT]
    assert resolve(by_function(asked), ["1", "1", "2"], ["1", "1", "1"], given) == ([1, 0, 0], 1)
    assert resolve(by_rules("gsm8k"), ["#### 1"] * 3, ["1"] * 3, given) == ([1, 0, 0], 1)


def test_bytes_that_are_no_text_are_replaced():
    tokens_BT, length_B = np.array([[0xFF, ord("1"), 999]]), np.array([3])  # 999 is no token
    found, _ = by_function(lambda response, answer: response == "\ufffd1").resolve(
        [UNDECIDED], tokens_BT, length_B, spell, ["1"]
    )
    assert found.tolist() == [0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda response, answer: 1 / 0, ["ZeroDivisionError: division by zero"]),
        (lambda response, answer: "yes", ["'yes' is neither true nor false nor a verdict"]),
        (lambda response, answer: UNDECIDED, ["is neither true nor false nor a verdict"]),
        (lambda response, answer: None, ["None is neither"]),
    ],
)
def test_a_function_that_fails_is_named_with_example_and_response(function, words):
    response = "line\n\x1b[31m" + "x" * 500
    with pytest.raises(UserError) as error:
        resolve(by_function(function), ["1", response], ["1", "2"], [Verdict.CORRECT, UNDECIDED], ids=[40, 41])
    message = str(error.value)
    where = "grader tests.grading.test_grader.<lambda>: "
    assert message.startswith(where) and "; example 41, response 'line\\n\\x1b[31mxxx" in message
    assert len(message) < 2 * SHOWN and f"' and {len(response) - SHOWN} more characters" in message
    assert [word for word in words if word not in message] == []


def test_our_own_rules_are_no_mistake_of_the_user():
    broken = by_rules("gsm8k")._replace(host=lambda response, answer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resolve(broken, ["1"], ["1"])


def test_a_task_names_rules_or_a_function_or_a_grader():
    assert grader_of("math").rules == "math" and grader_of(GSM8K).rules is GSM8K
    made = by_function(operator.eq)
    assert grader_of(made) is made and grader_of(operator.eq).rules is None
    with pytest.raises(ValueError, match="no grading rules 'maths'"):
        grader_of("maths")
    with pytest.raises(UserError, match=r"test_grader.*<lambda>: must take .response, answer., but too many pos"):
        grader_of(lambda response: True)
