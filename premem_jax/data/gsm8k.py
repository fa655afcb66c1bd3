"""GSM8K (Cobbe et al., arXiv 2110.14168): grade-school word problems with worked solutions ending in `#### N`."""

import json
from pathlib import Path

from premem_jax.data.examples import Example
from premem_jax.errors import UserError

SOURCE = "https://github.com/openai/grade-school-math, folder grade_school_math/data"


def read(folder: Path, split: str) -> list[Example]:
    """All examples of `folder/{split}.jsonl`; an example's id is its row in the official file, counted from 0.

    The prompt is the question, a newline and "Answer:"; the target is a space and the worked solution, annotations and
    `#### N` line included (Kang et al., released code).

    Raises:
      UserError: a missing file, or a row that is not `{question, answer}` with a `####` line, named by line number.
    """
    path = folder / f"{split}.jsonl"
    try:
        # Not splitlines(), which also cuts at U+2028 and U+0085; these may stand bare inside a JSON string.
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path} ({error}); give --config.data.path the folder of the official train.jsonl and "
            f"test.jsonl ({SOURCE})"
        ) from error
    lines += [rest] if rest else []
    return [_example(f"{path}:{row + 1}", row, line) for row, line in enumerate(lines)]


def _example(where: str, row: int, line: str) -> Example:
    try:
        item = json.loads(line)
        question, solution = item["question"], item["answer"]
        if not isinstance(question, str) or not isinstance(solution, str):
            raise TypeError("question and answer must be strings")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a row {{question, answer}}: {type(error).__name__} {error}") from error
    _, marker, answer = solution.partition("####")
    answer = answer.split("\n")[0].strip()
    if not marker or not any(c.isdigit() for c in answer):
        raise UserError(f"{where}: the answer has no `#### N` line: ...{solution[-60:]!r}")
    return Example(row, f"{question}\nAnswer:", f" {solution}", answer)
