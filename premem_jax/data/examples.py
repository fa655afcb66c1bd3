"""The example, the common type of all tasks."""

import dataclasses
import math
import re
from collections.abc import Mapping
from decimal import Decimal

CUE = "\nAnswer:"  # asks a model for the answer where no chat template does
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
FIELD = re.compile(r"\{(\w+)\}")  # a field of a row, in a template of a prompt or target


@dataclasses.dataclass(frozen=True)
class Example:
    """One training or test item. The model sees `prompt + target`; the tokenizer adds the stop marker.

    `id` is stable within its split. Plain text has an empty `prompt` and no answer. `target` is the reference solution
    and begins with a space; `answer` is the final answer alone. `metadata` has further fields of the source (MATH:
    `level` and `type`). `reworded` is a reworded prompt, if the task has one. `rejected` is the worse of two responses
    in a task of preferences, where `target` is the better one. A multiple-choice question has `options`, of which one
    is `target`. `messages` is a conversation (role, text) of which `target` is the next turn; only a chat template can
    write it.
    """

    id: int
    prompt: str
    target: str
    answer: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    reworded: str = ""
    rejected: str = ""
    options: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()

    @property
    def row(self) -> dict:
        """All fields, as values of JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"metadata": dict(self.metadata)}

    @classmethod
    def of_row(cls, row: Mapping) -> "Example":
        """The example whose `row` this is, as JSON gives it back."""
        return cls(**row | dict(options=tuple(row["options"]), messages=tuple(map(tuple, row["messages"]))))

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """Turns (role, text) before the target: `messages`, those of a dialogue in hh-rlhf's form, or a question."""
        parts = TURN.split(self.prompt)
        if not self.messages and parts[-2:] == ["Assistant", ""] and not parts[0]:
            return tuple((ROLES[name], text.strip()) for name, text in zip(parts[1:-2:2], parts[2:-2:2], strict=True))
        return self.messages or (("user", self.prompt.removesuffix(CUE).strip()),)


def number_text(value: int | float) -> str:
    """A number of a row as text, without a decimal point where it is integral, never as 1e-05.

    Raises ValueError for NaN and infinities.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    return str(value)


def worked(id: int, row: Mapping[str, str]) -> Example:
    """The example of a row `{problem, solution, answer, ...}` in the format of Kang et al. (released code).

    The prompt is the problem, a newline and "Answer:"; the target is a space and the worked solution.
    """
    metadata = {key: value for key, value in row.items() if key not in ("problem", "solution", "answer")}
    return Example(id, f"{row['problem']}{CUE}", f" {row['solution']}", row["answer"], metadata)
