"""Graders by name, for people's own tasks: what answer a text gives, and when two answers are the same.

  exact           the whole text
  last_line       the last line that is not empty
  number          the last number: `1,234`, `-3.5`, `3/4`, with a dollar or percent sign or not; number:0.01 allows a
                  relative error of 0.01
  choice          a letter from A to J: in parentheses, behind "answer", or the last one that stands alone
  boxed           what stands in the last \\boxed{...}, compared as MATH's answers are
  gsm8k, math     the rules of these tasks (`reference.py`)
  regex:PATTERN   the first group of the last match, or the match
  math_verify     what math-verify reads, compared as mathematics; the answer of a target is found as by `math`
  python:FILE.py:FUNCTION   FUNCTION(response, answer) -> true, false or a verdict; rows then need an answer
  none            responses are not graded; the run has likelihoods alone

`boxed`, `gsm8k` and `math` are decided on the device, the others on the host.
"""

import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

from premem_jax.errors import UserError
from premem_jax.grading import second_opinion
from premem_jax.grading.grader import Grader, by_function, by_rules
from premem_jax.grading.reference import find_answer
from premem_jax.grading.rules import Rules, rules_of
from premem_jax.grading.verdict import Verdict

NAMES = ("exact", "last_line", "number", "choice", "boxed", "gsm8k", "math", "math_verify", "none")
GUESSES = ("gsm8k", "boxed", "choice", "number", "exact")  # the first that gives every target an answer
NUMBER = re.compile(
    r"(?<![\w.])[-+−]?\$?[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+(?!\.?\d))?"
)
LETTERS = (r"\(([A-J])\)", r"(?i:answer)(?i:\s+is)?\s*:?\s*\**\(?([A-J])\b", r"^\W*([A-J])\W*$", r"\b([B-HJ])\b")


class Named(NamedTuple):
    """A grader, and what it takes from a text as its answer; `extract` is None where each row must bring an answer."""

    name: str
    grader: Grader
    extract: Callable[[str], str | None] | None


def find(name: str) -> Named:
    """The grader of that name.

    Raises:
      UserError: there is none, or its argument makes no sense: no such pattern, number, file or function.
    """
    kind, _, argument = name.partition(":")
    if kind == "python" and argument:
        return Named(name, by_function(_function(name, argument)), None)
    if name == "none":
        return Named(name, by_function(lambda response, answer: Verdict.UNPARSED)._replace(name=name), None)
    if name in ("boxed", "gsm8k", "math"):
        rules = Rules(boxed=True, phrases=()) if name == "boxed" else rules_of(name)
        return Named(name, by_rules(rules if name == "boxed" else name), lambda text: _by_rules(text, rules))
    if name == "math_verify":
        second_opinion.require()
        of_math = partial(_by_rules, rules=rules_of("math"))
        return Named(name, by_function(second_opinion.verdict)._replace(name=name), of_math)
    extract, same = _host_rule(name, kind, argument)

    def grade(response: str, answer: str) -> Verdict:
        found = extract(response)
        if found is None:
            return Verdict.UNPARSED
        return Verdict.CORRECT if same(found, answer) else Verdict.WRONG

    def answer(response: bytes) -> bytes | None:
        found = extract(response.decode(errors="replace"))
        if kind == "number" and found is not None and (value := _value(found)) is not None:
            found = str(value)  # 0.50 is 1/2
        return None if found is None else found.encode()

    return Named(name, by_function(grade)._replace(name=name, answer=answer), extract)


def guess(targets: Sequence[str]) -> str:
    """The first of `GUESSES` that gives each target an answer: `exact` does so with any."""
    fits = lambda name: all(find(name).extract(target) is not None for target in targets)
    return next(filter(fits, GUESSES), GUESSES[-1])


def _host_rule(name: str, kind: str, argument: str) -> tuple[Callable, Callable]:
    if name == "exact":
        return (lambda text: text.strip() or None), (lambda a, b: a == b.strip())
    if name == "last_line":
        return _last_line, (lambda a, b: a == b.strip())
    if name == "choice":
        return _letter, (lambda a, b: a == (_letter(b) or b.strip()))
    if kind == "number":
        return _number, partial(_close, tolerance=_tolerance(name, argument))
    if kind == "regex" and argument:
        return _matching(name, argument), (lambda a, b: a == b.strip())
    raise UserError(
        f"data.grader={name!r}: there is {', '.join(NAMES)}, number:TOLERANCE, regex:PATTERN, python:FILE.py:FUNCTION"
    )


def _by_rules(text: str, rules: Rules) -> str | None:
    found = find_answer(text.encode(), rules)
    return found.decode(errors="replace").strip() or None if found else None


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def _letter(text: str) -> str | None:
    for pattern in LETTERS:
        if found := re.findall(pattern, text.strip()):
            return found[-1]
    return None


def _number(text: str) -> str | None:
    found = NUMBER.findall(text)
    return re.sub(r"[,$\s+]", "", found[-1]).replace("−", "-") if found else None


def _value(text: str) -> Fraction | None:
    number = _number(text)
    try:
        return None if number is None else Fraction(number)
    except (ZeroDivisionError, ValueError):  # the latter of thousands of digits, which Python does not convert
        return None


def _tolerance(name: str, argument: str) -> float:
    try:
        tolerance = float(argument) if argument or ":" in name else 0.0
    except ValueError:
        tolerance = math.nan
    if not 0 <= tolerance < 1:
        raise UserError(f"data.grader={name!r}: the tolerance is a number from 0 to below 1, such as number:0.01")
    return tolerance


def _close(found: str, answer: str, tolerance: float) -> bool:
    a, b = _value(found), _value(answer)
    if a is None or b is None:
        return found == answer.strip()
    return abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b))


def _matching(name: str, pattern: str) -> Callable[[str], str | None]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.grader={name!r}: {error}") from error

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return (found[-1][1 if compiled.groups else 0] or "").strip() or None if found else None

    return extract


def code(name: str) -> bytes:
    """What a grader does beside our own code: the file of a python grader; empty for the others."""
    kind, _, argument = name.partition(":")
    return _place(name, argument)[0].read_bytes() if kind == "python" else b""


def _place(name: str, argument: str) -> tuple[Path, str]:
    """The file and the function of a python grader."""
    file, _, function = argument.rpartition(":")
    path = Path(os.path.expanduser(file))
    if not file or not path.is_file():
        raise UserError(f"data.grader={name!r}: no file {file!r}; it is python:FILE.py:FUNCTION")
    return path, function


def _function(name: str, argument: str) -> Callable:
    path, function = _place(name, argument)
    spec = importlib.util.spec_from_file_location(f"grader_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"data.grader={name!r}: {path} fails to load ({type(error).__name__}: {error})") from error
    if not callable(found := getattr(module, function, None)):
        raise UserError(f"data.grader={name!r}: {path} has no function {function!r}")
    return found
