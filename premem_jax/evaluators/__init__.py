"""Evaluators: measurements on a split. Each is found by the name of its module; a new one is a new file here."""

import difflib
import importlib
import pkgutil
from typing import Any

from premem_jax.errors import UserError
from premem_jax.evaluators.base import Evaluator

# Modules that are not evaluators.
OTHERS = ("base", "planned", "rounds", "run", "settled", "suite", "unfinished")


def names() -> list[str]:
    """The types of evaluators that a config can name."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in OTHERS]


def find(kind: str) -> type[Evaluator]:
    """The evaluator class of a type. Raises UserError for an unknown type, and lists the known ones."""
    if kind not in names():
        raise UserError(f"no evaluator of type {kind!r}{_near(kind, names())} (there are: {', '.join(names())})")
    module = importlib.import_module(f"{__name__}.{kind}")
    mine = (each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__)
    return next(each for each in mine if isinstance(each, type) and issubclass(each, Evaluator))


def options(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a type: `given` ones and defaults. Raises UserError for an unknown option."""
    known = find(kind).defaults()
    for name in given:
        if name not in known:
            raise UserError(
                f"{kind} has no option {name!r}{_near(name, known)} (there are: {', '.join(known) or 'none'})"
            )
    return known | given


def _near(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
