"""GSM8K (Cobbe et al., arXiv 2110.14168): grade-school word problems with worked solutions ending in `#### N`."""

from pathlib import Path

from premem_jax.data.examples import Example, worked
from premem_jax.data.sources import Dataset, parse_rows, read_folder
from premem_jax.tasks.task import Task

GRADER = "gsm8k"
FREE_FORM = False
SIZES = (7473, 1319)


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """Examples of the official files, or of those at `path`; held-out ones come from the training file."""
    from premem_jax.data import builders  # TFDS takes a while to import, and other tasks do without

    splits, train = builders.splits(GSM8K, path, sizes, seed, cache)
    return Task(splits, lambda: (e.prompt + e.target for e in train))


def read(folder: Path, split: str) -> list[Example]:
    """All examples of `folder/{split}.jsonl`; an example's id is its row in the official file, counted from 0.

    Raises:
      UserError: a missing file, or a row that is not `{question, answer}` with a `####` line; names the line number.
    """
    rows = parse_rows(read_folder(folder, split, GSM8K), GSM8K)
    return [worked(id, row) for id, row in enumerate(rows)]


def parse(question: str, answer: str) -> dict[str, str]:
    """Converts to a row `{problem, solution, answer}`; annotations and the `#### N` line stay in the solution."""
    return dict(problem=question, solution=answer, answer=final_answer(answer))


def is_solution(text: str) -> bool:
    """Whether the text has the `####` marker of a solution."""
    return "####" in text


def final_answer(solution: str) -> str:
    """The number of the `#### N` line; raises ValueError if there is none."""
    _, marker, final = solution.partition("####")
    final = final.split("\n")[0].strip()
    if not marker or not any(c.isdigit() for c in final):
        raise ValueError(f"the answer has no `#### N` line: ...{solution[-60:]!r}")
    return final


GSM8K = Dataset(
    name="gsm8k",
    about=__doc__,
    url="https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data",
    files={
        "train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    },
    rows={
        "train": "057ced923ddd118c56fada0621430d7872bd1d36469b030a58243530c7f35fb8",
        "test": "f501f7aa71b36f4d247c4c68056fec2f1ff50fd5913c19c8387d4afdbd4da31d",
    },
    get=(
        "give --config.data.path the folder of the official train.jsonl and test.jsonl "
        "(https://github.com/openai/grade-school-math, folder grade_school_math/data), or the URL of a mirror of it"
    ),
    fields=("question", "answer"),
    parse=parse,
    columns=("problem", "solution", "answer"),
    defects={
        # Kept: the calculator annotations <<2+3=5>> are part of the solution where there are any.
        "without_annotations": lambda row: "<<" not in row["solution"],
    },
)
