"""Graders: one interface with two makers, rules on the device and a Python function."""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from premem_jax.errors import UserError
from premem_jax.grading.reference import grade_bytes, normalised
from premem_jax.grading.rules import Rules, rules_of
from premem_jax.grading.verdict import Verdict

SHOWN = 200  # characters of a response in a message


class Grader(NamedTuple):
    """A grader; made by `by_rules` or `by_function`.

    The device grades by `rules` (`answers.py`); without rules, every response is UNDECIDED. `host` decides the
    UNDECIDED ones: (bytes of a response, its answer) -> verdict. `answer` gives the normalised answer in the bytes of a
    response, None if it has none; it is None for a function that only judges.
    """

    name: str
    host: Callable[[bytes, str | bytes | None], Verdict]
    rules: str | Rules | None = None
    answer: Callable[[bytes], bytes | None] | None = None

    def resolve(
        self,
        verdict_B,
        tokens_BT,
        length_B,
        spell: Callable[[Sequence[int]], bytes],
        answers: Sequence,
        ids: Sequence | None = None,
    ) -> tuple[np.ndarray, int]:
        """Replaces UNDECIDED by the host's verdicts: the verdicts (B,), and the number of replaced ones.

        `spell` gives the bytes of the text of tokens. `answers` and `ids` (example ids, for messages) have one entry
        per row. Arrays may be on the device; only undecided rows are copied.

        Raises:
          UserError: the function of `by_function` fails; the message has the example and the response.
        """
        verdict_B = np.array(verdict_B)
        doubtful = np.flatnonzero(verdict_B == Verdict.UNDECIDED)
        for b in doubtful:
            tokens = np.asarray(tokens_BT[b])[: int(length_B[b])]
            response = spell(tokens)
            try:
                verdict_B[b] = self.host(response, answers[b])
            except Exception as error:
                if self.rules is not None:
                    raise  # our own rules know an answer to everything
                raise UserError(self.failed(error, response, f"example {b if ids is None else ids[b]}")) from error
        return verdict_B, len(doubtful)

    def failed(self, error: Exception, response: bytes, where: str) -> str:
        """The message on a function that fails on a response."""
        text = response.decode(errors="replace")
        shown = repr(text[:SHOWN]) + (f" and {len(text) - SHOWN} more characters" if len(text) > SHOWN else "")
        return f"grader {self.name}: {type(error).__name__}: {error}; {where}, response {shown}"


def by_rules(rules: str | Rules) -> Grader:
    """A grader by rules on the device; the host applies the same rules to what does not fit the kernel.

    Raises ValueError for unknown rules.
    """
    rules_of(rules)
    as_bytes = lambda answer: answer.encode() if isinstance(answer, str) else answer
    name = rules if isinstance(rules, str) else "rules"
    host = lambda response, answer: grade_bytes(response, as_bytes(answer), rules)
    return Grader(name, host, rules, lambda response: normalised(response, rules))


def by_function(function: Callable[[str, str], Verdict | bool]) -> Grader:
    """A grader by `function(response, answer)` on the host, which returns a bool, or CORRECT, WRONG or UNPARSED.

    A response is the text of its tokens up to the stop marker, so it usually begins with a space; invalid UTF-8 becomes
    U+FFFD. With several processes, only process 0 calls the function.

    Raises:
      UserError: it does not take two arguments.
    """
    name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
    try:
        inspect.signature(function).bind("", "")
    except TypeError as error:
        raise UserError(f"grader {name}: must take (response, answer), but {error}") from error
    except ValueError:
        pass  # written in C, and does not say

    def host(response: bytes, answer: str) -> Verdict:
        said = function(response.decode(errors="replace"), answer)
        if isinstance(said, bool | np.bool_):
            return Verdict.CORRECT if said else Verdict.WRONG
        if isinstance(said, Verdict) and said != Verdict.UNDECIDED:
            return said
        raise TypeError(f"{said!r} is neither true nor false nor a verdict")

    return Grader(name, host)


def grader_of(grader: Grader | str | Rules | Callable) -> Grader:
    """The grader of a task, which may give a grader, rules, the name of rules, or a function."""
    if isinstance(grader, Grader):
        return grader
    return by_rules(grader) if isinstance(grader, str | Rules) else by_function(grader)
