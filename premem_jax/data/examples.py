"""The one shape in which every task hands over its items."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Example:
    """One training or test item; the model sees `prompt + target`, and the tokenizer side adds the stop marker.

    `id` is stable within its split. `prompt` is empty for plain text, which has no answer either. `target` is the
    reference solution and begins with a space; `answer` is the final answer alone. `metadata` is what else the source
    says of the item (MATH: `level` and `type`). `reworded` is a prompt that asks the same in other words, if the task
    can make one.
    """

    id: int
    prompt: str
    target: str
    answer: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    reworded: str = ""


def worked(id: int, row: Mapping[str, str]) -> Example:
    """The example of a row `{problem, solution, answer, ...}` in the format of Kang et al. (released code).

    The prompt is the problem, a newline and "Answer:"; the target is a space and the worked solution.
    """
    metadata = {key: value for key, value in row.items() if key not in ("problem", "solution", "answer")}
    return Example(id, f"{row['problem']}\nAnswer:", f" {row['solution']}", row["answer"], metadata)
