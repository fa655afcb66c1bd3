"""Multiple-choice questions from a file of MMLU, CommonsenseQA or CoLA, told apart by their rows.

  MMLU           {question, choices, answer}: four texts or so, and the letter or the number of the right one
  CommonsenseQA  {question: {stem, choices: [{label, text}]}, answerKey}
  CoLA           a .tsv of source, label (1: acceptable), the author's mark, sentence

The prompt lists the options under letters, and the target is a letter; of CoLA it is yes or no. The evaluator
`option_likelihood` compares the options of a question.
"""

import csv
import io
from collections.abc import Mapping

from etils.epath import Path

from premem_jax.data.examples import Example
from premem_jax.data.sources import fields, jsonl
from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.tasks.preferences import final_answer, is_solution, parts
from premem_jax.tasks.task import Task

__all__ = ["GRADER", "SIZES", "final_answer", "is_solution", "load"]

FREE_FORM = False
SIZES = ()  # as many as the file has
LETTERS = "ABCDEFGHIJ"
COLA = "{sentence}\nQuestion: Is this sentence acceptable English?\nAnswer:"


def GRADER(response: str, answer: str) -> bool:
    """Whether a response begins with the right option's letter or word."""
    return [word.rstrip(".,:)") for word in response.split()[:1]] == [answer]


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """The questions of the file `path`: `heldout` and `test` are drawn by `seed`; `train` is the rest, or a part of it.

    Raises:
      UserError: no file, a malformed row, or too few questions.
    """
    if not path:
        raise UserError("data.path is empty; give it a file of MMLU, CommonsenseQA or CoLA")
    splits = parts(read(storage.path(path)), sizes, seed, path)
    texts = [e.prompt + e.target for e in splits["train"]]
    return Task(splits, lambda: texts)


def read(path: Path) -> list[Example]:
    """All questions of a file; an example's id is its row, counted from 0."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read ({error.strerror or error})") from error
    if path.suffix == ".tsv":
        return _cola(path, data)
    return [_listed(id, where, text) for id, (where, text) in enumerate(jsonl(data, path).items)]


def _listed(id: int, where: str, text: bytes) -> Example:
    row = fields(where, text, ("question",))
    question, nested = row["question"], isinstance(row["question"], Mapping)
    listed, answer = question if nested else row, row.get("answerKey" if nested else "answer")
    choices, stem = listed.get("choices"), question.get("stem") if nested else question
    if not isinstance(stem, str) or not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{where}: no row of MMLU or CommonsenseQA; it has a question and 2 to {len(LETTERS)} choices")
    if nested:
        choices = [choice.get("text") if isinstance(choice, Mapping) else None for choice in choices]
    letters = LETTERS[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        answer = letters[answer]
    if not all(isinstance(choice, str) for choice in choices) or not isinstance(answer, str) or len(answer) != 1:
        raise UserError(f"{where}: choices are texts, and the answer is one of {', '.join(letters)}")
    if answer not in letters:
        raise UserError(f"{where}: the answer {answer!r} is none of {', '.join(letters)}")
    lines = [stem.strip(), *(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)), "Answer:"]
    about = {key: row[key] for key in ("subject",) if isinstance(row.get(key), str)}
    return Example(id, "\n".join(lines), f" {answer}", answer, about, options=tuple(f" {letter}" for letter in letters))


def _cola(path: Path, data: bytes) -> list[Example]:
    found = []
    for id, line in enumerate(csv.reader(io.StringIO(data.decode()), delimiter="\t", quoting=csv.QUOTE_NONE)):
        if len(line) != 4 or line[1] not in ("0", "1"):
            raise UserError(f"{path}:{id + 1}: no row of CoLA: source, 0 or 1, mark and sentence")
        answer = ("no", "yes")[int(line[1])]
        found.append(Example(id, COLA.format(sentence=line[3]), f" {answer}", answer, options=(" no", " yes")))
    return found
