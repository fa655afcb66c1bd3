"""Limits of settings. Each describes in words what it allows."""

import difflib
import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from premem_jax.errors import UserError


class Limit(NamedTuple):
    """`says` completes "must be ..."; `allows` accepts values of any type and returns whether one is allowed."""

    says: str
    allows: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def check(self, key: str, value: Any, about: str) -> None:
        """Raises UserError with the key's name if `value` is not allowed; `about` is the key's help line."""
        if self.allows(value):
            return
        near = difflib.get_close_matches(value, self.choices, n=1) if isinstance(value, str) else ()
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{key}={shown(value)}: must be {self.says} ({about}){hint}")


def shown(value: Any) -> str:
    """A value on one line, truncated."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 200 else line[:200] + "..."


def number(least: float, most: float, *, above: bool = False, below: bool = False) -> Limit:
    """A finite number between `least` and `most`, inclusive unless `above` or `below` excludes an end."""
    interval = f"{'(' if above else '['}{least:g}, {most:g}{')' if below else ']'}"

    def allows(value):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (least < value if above else least <= value) and (value < most if below else value <= most)

    return Limit(f"a number in {interval}", allows)


def integer(least: int, most: int) -> Limit:
    """A whole number from `least` to `most`."""
    allows = lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    return Limit(f"a whole number from {least} to {most}", allows)


def choice(*names: str) -> Limit:
    """One of some names; the error suggests the nearest."""
    words = [repr(name) for name in names]
    says = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    return Limit(says, lambda value: isinstance(value, str) and value in names, names)


def flag() -> Limit:
    """True or False; numbers are not accepted."""
    return Limit("True or False", lambda value: isinstance(value, bool))


def text(most: int = 2**20) -> Limit:
    """Any text of up to `most` characters that has UTF-8 and no NUL, so that it can be a path or part of a prompt."""

    def allows(value):
        try:
            return isinstance(value, str) and len(value) <= most and b"\0" not in value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which stands for a byte that is no text
            return False

    return Limit(f"a text (UTF-8) of up to {most:,} characters without NUL", allows)


def tuple_of(limit: Limit, *, increasing: bool = False) -> Limit:
    """A tuple, possibly empty, of values within `limit`."""

    def allows(values):
        if not isinstance(values, tuple | list) or not all(map(limit.allows, values)):
            return False
        return not increasing or all(a < b for a, b in itertools.pairwise(values))

    return Limit(f"a tuple, each entry {limit.says}{', in increasing order' if increasing else ''}", allows)


def row(*limits: Limit) -> Limit:
    """A fixed number of values, one per limit."""
    allows = lambda v: (
        isinstance(v, tuple | list)
        and len(v) == len(limits)
        and all(limit.allows(x) for limit, x in zip(limits, v, strict=True))
    )
    return Limit(f"({', '.join(limit.says for limit in limits)})", allows)


def anything() -> Limit:
    """Any value; its limit is checked elsewhere."""
    return Limit("a value", lambda value: True)


def either(*limits: Limit) -> Limit:
    """A value that one of the limits allows."""
    says = " or ".join(limit.says for limit in limits)
    return Limit(says, lambda value: any(limit.allows(value) for limit in limits))


def word() -> Limit:
    """A name of an evaluator or of a run's folder."""
    allows = lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w.+=-]{0,99}", value) is not None
    return Limit("a name of up to 100 letters, digits and any of _.+=-", allows)


FP32 = 1e30  # larger numbers, and their products, leave the range of fp32
COUNT = integer(1, 10**9)
NATURAL = integer(0, 10**9)
SEED = integer(0, 2**32 - 1)
ROWS = integer(1, 2**16)
TOKENS = integer(1, 2**20)
NEEDED = text()._replace(says="a text that is not empty", allows=lambda value: bool(value) and text().allows(value))
PROBABILITY = number(0, 1, above=True, below=True)
