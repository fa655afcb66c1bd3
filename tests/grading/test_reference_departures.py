r"""The rule of the released code in plain Python on characters, and each way in which ours departs from it.

Source: the evaluation scripts of Kang et al. (arXiv 2411.07681). `read` is their rule; each departure that it is told
to make turns one part of it into ours. All of them must make our rule, on real texts and on any other; none gives
the counts that `reference.py` reports.
"""

import functools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.grading import reference
from premem_jax.grading.reference import equal, find_answer
from tests.grading.vocabularies import jsonl

PHRASES = ("FINAL ANSWER", "answer is", "ANSWER", "Final Answer", "is:", "Answer", "answer")
THE_ANSWER_IS, HASHES, BOX = "The answer is: ", "#### ", "\\boxed{"
NARROW = " \t\n\r\v\f"
WIDE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())  # what str.strip() removes
KINDS = ("fbox", "inside", "unclosed", "colon", "unboxing", "space", "nothing")
RELEASED, OURS = frozenset(), frozenset(KINDS)


def match(text: str) -> str | None:
    """What stands between a brace at the start and the one that closes it."""
    depth = 0
    for i, c in enumerate(text):
        depth += {"{": 1, "}": -1}.get(c, 0)
        if depth == 0:
            return text[1:i] if text.startswith("{") else None
    return None


def last_box(text: str, departures: frozenset[str]) -> str | None:
    """Content of the last box. The released code finds an \\fbox too, but opens none."""
    if "\\boxed" in text:
        return match(text.rpartition("\\boxed")[2])
    return match(text.rpartition("\\fbox")[2]) if "\\fbox" in text and "fbox" in departures else None


def behind(rest: str, task: str, departures: frozenset[str]) -> str:
    """The answer in what follows a phrase."""
    if task == "gsm8k" and "unboxing" in departures:
        inside = last_box(rest, departures)
        if inside is not None:
            return inside
    space = NARROW if "space" in departures else WIDE
    if "inside" in departures:
        rest = rest.strip(space + ":$")
        rest = rest[:-1].rstrip(space + ":$") if rest.endswith(".") else rest
    else:
        rest = rest.replace(":", "").replace("$", "")
        rest = (rest.replace("\n", "") if task == "math" else rest).strip(space)
        rest = rest[:-1] if rest.endswith(".") else rest
    whole = rest.startswith(BOX) and rest.endswith("}")
    closed = whole and match(rest[len(BOX) - 1 :]) == rest[len(BOX) : -1]
    if whole and "unboxing" not in departures and (closed or "unclosed" not in departures):
        return rest[len(BOX) : -1]
    return rest


def read(text: str, task: str, departures: frozenset[str]) -> str | None:
    """The answer that a response gives."""
    if task == "math":
        inside = last_box(text, departures)
        phrase = next((phrase for phrase in PHRASES if phrase in text), None)
        if inside is not None or phrase is None:
            return inside
        return behind(text.rpartition(phrase)[2], task, departures)
    at = text.rfind(THE_ANSWER_IS if "colon" in departures else THE_ANSWER_IS.rstrip(": "))
    if at >= 0:
        return behind(text[at + len(THE_ANSWER_IS) :], task, departures).replace(",", "")
    if HASHES not in text and "nothing" in departures:
        return None
    return text[text.find(HASHES) + len(HASHES) :].replace(",", "")  # not found: from the fifth character on


@functools.cache
def texts(of: str) -> list[tuple[str, str]]:
    """Every output of real models and every reference solution, with the right answers."""
    field = {"gsm8k": "answer", "math": "solution"}[of]
    rows = [row for split in ("train", "test") for row in jsonl(f"data/{of}/{split}.jsonl")]
    rows = [(row[field], row["answer"].rpartition(HASHES)[2].replace(",", "")) for row in rows]
    return rows + [(row["output"], row["gt"]) for row in jsonl(f"data/outputs/{of}_graded.jsonl")]


def encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def count(task: str, of: str) -> tuple[int, int, int, Counter]:
    """Texts; those whose answer differs; those whose correctness does; by departure, those that it alone changes."""
    differ, verdicts, kinds = 0, 0, Counter()
    for text, answer in texts(of):
        found, theirs = find_answer(text.encode(), task), read(text, task, RELEASED)
        assert encoded(read(text, task, OURS)) == found
        if encoded(theirs) == found:
            continue
        differ += 1
        verdicts += equal(found, answer.encode()) != equal(encoded(theirs), answer.encode())
        kinds.update(kind for kind in KINDS if read(text, task, frozenset([kind])) != theirs)
    return len(texts(of)), differ, verdicts, kinds


@pytest.mark.parametrize(
    "rules,of,counts",
    [
        ("gsm8k", "gsm8k", (16_706, 7_916, 2, {"nothing": 7_913, "colon": 3, "inside": 1, "unboxing": 1})),
        ("math", "math", (13_300, 0, 0, {})),
        # Texts of the other task have no mark of their own, so that phrases decide.
        ("math", "gsm8k", (16_706, 115, 0, {"inside": 115})),
        (
            "gsm8k",
            "math",
            (13_300, 13_300, 40, {"nothing": 13_186, "colon": 114, "unboxing": 72, "inside": 32, "unclosed": 2}),
        ),
    ],
)
def test_real_texts(rules, of, counts):
    assert count(rules, of) == counts


def test_every_departure_is_documented_with_its_counts():
    text = reference.__doc__
    assert all(f"\n{kind:<10}" in text for kind in KINDS)
    for number in ("16,706", "13,300", "7,916", "7,913", "115", "13,186", "114", "72", "40"):
        assert number in text


PIECES = (
    *PHRASES, "The answer is", THE_ANSWER_IS, HASHES, BOX, "\\boxed", "\\fbox{", "\\fbox", "{", "}", ":", "$", ".", ",",
    " ", "\n", "\t", "\x1c", "\x85", "\xa0", "\u2003", "1", "18", "é", "\\frac{1}{2}", "\\boxed{7}",
)  # fmt: skip


@given(st.sampled_from(("gsm8k", "math")), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_the_departures_are_all_there_is(task, text):
    assert encoded(read(text, task, OURS)) == find_answer(text.encode(), task)


@pytest.mark.parametrize(
    "kind,task,text,theirs,ours",
    [
        ("fbox", "math", r"\fbox{2}", None, "2"),
        ("inside", "math", "The answer is: a:b$c\nd.", "abcd", "a:b$c\nd"),
        ("unclosed", "math", r"\boxed{ the answer is \boxed{\frac{2}", r"\frac{2", r"\boxed{\frac{2}"),
        ("colon", "gsm8k", "The answer is 18 #### 3", "8 #### 3", "3"),
        ("unboxing", "gsm8k", r"The answer is: so \boxed{18}", r"so \boxed{18}", "18"),
        ("space", "gsm8k", "The answer is: \xa018", "18", "\xa018"),
        ("nothing", "gsm8k", "It is 18", "s 18", None),
    ],
)
def test_one_departure_each(kind, task, text, theirs, ours):
    assert read(text, task, RELEASED) == theirs
    assert read(text, task, frozenset([kind])) == ours and find_answer(text.encode(), task) == encoded(ours)
