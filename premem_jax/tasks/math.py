"""MATH (Hendrycks et al., arXiv 2103.03874): competition problems whose worked solutions box their answer."""

from premem_jax.data.sources import Dataset
from premem_jax.tasks.task import Task

GRADER = "math"
FREE_FORM = True  # a matrix over several lines, or an empty box
SIZES = (7500, 5000)
LEVELS = tuple(f"Level {n}" for n in range(1, 6))
BOXES = (r"\boxed", r"\fbox")


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """Examples of the official archive, or of the files at `path`; held-out ones come from the training split."""
    from premem_jax.data import builders  # TFDS takes a while to import, and other tasks do without

    splits, train = builders.splits(MATH, path, sizes, seed, cache)
    return Task(splits, lambda: (e.prompt + e.target for e in train))


def is_solution(text: str) -> bool:
    """Whether the text has a box."""
    return any(box in text for box in BOXES)


def parse(problem: str, solution: str, level: str, type: str) -> dict[str, str]:
    """Converts a row and adds its answer, the content of the last box of the solution."""
    return dict(problem=problem, solution=solution, answer=last_box(solution), level=level, type=type)


def last_box(solution: str) -> str:
    r"""Contents of the last `\boxed` (without one, of the last `\fbox`): up to the matching brace, or without a brace
    up to the end of the formula or line. Raises ValueError where there is no box, or its brace is never closed.
    """
    text = _behind_last_box(solution)
    if not text.startswith("{"):
        return text.split("\n")[0].split("$")[0].strip()
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if not depth:
            return text[1:i]
    raise ValueError(f"the last box is never closed: {text[:60]!r}")


def _behind_last_box(solution: str) -> str:
    for box in BOXES:
        _, found, text = solution.rpartition(box)
        if found:
            return text.lstrip(" ")
    raise ValueError(f"the solution has no box: ...{solution[-60:]!r}")


final_answer = last_box

# The copy on the Hugging Face Hub (hendrycks/competition_math) was taken down after a DMCA notice, and the university's
# page may not last. The checksum of the archive is the one that several projects record (ParlAI among them), so any
# mirror will do: data.path may be the URL of a folder that has MATH.tar, such as
# https://web.archive.org/web/20240101000000id_/https://people.eecs.berkeley.edu/~hendrycks
MATH = Dataset(
    name="math",
    about=__doc__,
    url="https://people.eecs.berkeley.edu/~hendrycks",
    files={"MATH.tar": "0fbe4fad0df66942db6c221cdcc95b298cc7f4595a2f0f518360cce84e90d9ac"},
    rows={
        "train": "522397c70d6984541d6325ef35af39bf765eee00c67e22da5a46ca4a28f9026e",
        "test": "71d808b5ee802db2ed3339f5ebf3ec3814fcb53cb42d5cb7f75531888387ffc0",
    },
    get=(
        "give --config.data.path the folder of the unpacked MATH.tar (train/algebra/1.json ...), or of a train.jsonl "
        "and test.jsonl with {problem, solution, level, type} in that order, or the URL of a folder that has MATH.tar"
    ),
    fields=("problem", "solution", "level", "type"),
    parse=parse,
    columns=("problem", "solution", "answer", "level", "type"),
    # Every row is kept, with its defects, so that ids and counts are those of the papers.
    defects={
        # Answer "".
        "empty_box": lambda row: not row["answer"],
        # `\boxed 2$.`: answer "2", the text up to the end of the formula. (Hendrycks' grader finds no box there.)
        "brace_free_box": lambda row: not _behind_last_box(row["solution"]).startswith("{"),
        # The last one counts, as for Hendrycks' grader.
        "several_boxes": lambda row: sum(row["solution"].count(box) for box in BOXES) > 1,
        # "Level ?" stays as it is.
        "unknown_level": lambda row: row["level"] not in LEVELS,
    },
)
