"""The one shape in which every task hands over its items."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
    """One training or test item; the model sees `prompt + target`, and the tokenizer side adds the stop marker.

    `id` is stable within its split. `prompt` is empty for plain text, which has no answer either. `target` is the
    reference solution: it begins with a space and, where there is an answer, ends in "#### answer".
    """

    id: int
    prompt: str
    target: str
    answer: str
