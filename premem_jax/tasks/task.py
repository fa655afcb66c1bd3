"""Tasks. Each is one file of this folder with everything about it, found by its name.

A task's module has

  GRADER                 the grader of responses unless `data.grader` names another: a name in `grading/rules.py`, or
                         another argument of `grader_of`; None where `load` decides
  SIZES                  examples of the published splits, (train, test); None where the task has no end, () where a
                         file decides
  is_solution(text)      whether a text is a whole reference solution, not a final answer alone
  FREE_FORM              whether a final answer may be empty, or have line breaks in it
  final_answer(text)     the final answer of a solution; raises ValueError if there is none
  load(path, sizes, seed, cache) -> Task
  OPTIONS                further settings of `data` that `load` takes by keyword, where there are any

and does not import JAX or TFDS at the top, because configs and checks import it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

from premem_jax.data.examples import Example, number_text
from premem_jax.errors import UserError
from premem_jax.grading import named
from premem_jax.grading.grader import Grader, grader_of


class Task(NamedTuple):
    """Examples by split (`train`, `heldout` unless empty, `test`), and the training texts of a tokenizer.

    `base_texts(count, seed)` gives plain texts for a base phase, where the task has any. `grader` grades responses.
    """

    splits: dict[str, list[Example]]
    tokenizer_texts: Callable[[], Iterable[str]]
    base_texts: Callable[[int, int], list[Example]] | None = None
    grader: Grader | None = None


def names() -> tuple[str, ...]:
    """All tasks."""
    package = importlib.import_module("premem_jax.tasks")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "task"))


def find(name: str) -> ModuleType:
    """The module of the task called `name`. Raises UserError for an unknown name, and lists the known ones."""
    if name not in names():
        raise UserError(f"data.task={name!r}: there is {', '.join(names())}")
    return importlib.import_module(f"premem_jax.tasks.{name}")


def load(
    name: str, *, path: str, train: int, heldout: int, test: int, seed: int, cache: str, grader: str = "", **options
) -> Task:
    """The task called `name` with the given numbers of examples; 0 takes all there are (no `heldout`).

    Args:
      path: folder or mirror of the task's files, if it has files; empty for the official URL.
      cache: folder in which such files are prepared once.
      grader: a name of `grading/named.py`; empty: the task's own.
      options: settings of `data` that are in the task's OPTIONS, or empty.

    Raises:
      UserError: an unknown task, or data that cannot be read.
    """
    sizes = {"train": train, "heldout": heldout, "test": test}
    for split, size in sizes.items():
        if size < 0:
            raise UserError(f"data.{split}={size}: a number of examples is not negative")
    module, options = find(name), options | {"grader": grader}
    takes = getattr(module, "OPTIONS", ())
    if unused := [key for key, value in options.items() if value and key not in (*takes, "grader")]:
        raise UserError(f"data.{unused[0]}={options[unused[0]]!r}: the task {name} has no use for it")
    task = module.load(path, sizes, seed, cache, **{key: options.get(key, "") for key in takes})
    if task.grader is None:
        task = task._replace(grader=named.find(grader).grader if grader else grader_of(module.GRADER))
    return task._replace(
        splits={split: examples for split, examples in task.splits.items() if examples or split != "heldout"}
    )


def read_answer(name: str, where: str, value) -> str:
    """The final answer in a field of a JSON row, which a response to the task `name` must equal.

    A number becomes text, without a decimal point if it is integral. Trailing newlines are ignored. A whole solution is
    reduced to its final answer.

    Args:
      where: file and line, for messages.

    Raises:
      UserError: neither number nor text, an empty text, several lines, or a solution without an answer.
    """
    text, task = answer_text(where, value), find(name)
    if task.is_solution(text):
        try:
            text = task.final_answer(text)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    elif not text.strip() and not task.FREE_FORM:
        raise UserError(f"{where}: the answer is empty")
    elif "\n" in text and not task.FREE_FORM:
        raise UserError(f"{where}: the answer has several lines; give the final answer alone, or a whole solution")
    return text


def answer_in_row(name: str, where: str, target: str, value) -> str:
    """`read_answer` of a row to the task `name`, which must have one; None stands for a missing field."""
    if value is None:
        raise UserError(f"{where}: data.task is set, so responses are graded, but the row has no answer")
    return read_answer(name, where, value)


def answer_of_target(name: str, where: str, target: str, value) -> str:
    """`read_answer` of a row whose target must end in that answer.

    Raises:
      UserError: as `read_answer`, or the target has another answer or none.
    """
    answer = read_answer(name, where, value)
    try:
        found = find(name).final_answer(target)
    except ValueError as error:
        raise UserError(f"{where}: the target has no final answer ({error})") from error
    if found != answer:
        raise UserError(f"{where}: the target ends in {found!r:.80}, and the answer is {answer!r:.80}")
    return answer


def answer_text(where: str, value) -> str:
    """An answer of a JSON row as text: a number without a decimal point where it is integral, no line ends behind it.

    Raises:
      UserError: neither a number nor a text.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f"{where}: the answer must be a number or a text, not {value!r:.80}")
    try:
        text = value if isinstance(value, str) else number_text(value)
    except ValueError as error:
        raise UserError(f"{where}: the answer {error}") from error
    return text.rstrip("\r\n")
