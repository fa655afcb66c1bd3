"""People's own questions and answers: `train.jsonl` (or `.parquet`) of a folder, and `heldout` and `test` if there are.

The folder may also be a dataset of Hugging Face: as `save_to_disk` writes it, or as a download from the hub.

`data/rows.py` says what a row is, `grading/named.py` how answers are found and compared. Without a test file, a fifth
of the training rows, and at least fifty, are kept for it; `data.seed` decides which.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from premem_jax.data import rows
from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.grading import named
from premem_jax.running import storage
from premem_jax.tasks.task import Task, answer_text

GRADER = None  # `data.grader` says it, or the targets
FREE_FORM = True
SIZES = ()  # as many as the files have
OPTIONS = ("grader", "prompt", "target")
NAMES = {"train": ("train",), "heldout": ("heldout", "validation"), "test": ("test",)}
PLACES = (  # of the files of a split
    "{}.jsonl",
    "{}.parquet",
    "{}/data-*-of-*.arrow",  # of a DatasetDict on disk
    "{}-*-of-*.parquet",
    "data/{}-*-of-*.parquet",  # of a repository of the hub
)
ALONE = "data-*-of-*.arrow"  # of a Dataset on disk, without splits
TEST_SHARE, LEAST_TEST = 0.2, 50
SHOWN = 3
LARGE = 32 * 2**20  # bytes of files whose rows are kept once they are checked, which makes the next starts faster


def is_solution(text: str) -> bool:
    """Always false: the grader finds the answer."""
    return False


def final_answer(solution: str) -> str:
    """The text itself."""
    return solution


def load(
    path: str, sizes: dict[str, int], seed: int, cache: str, *, grader: str = "", prompt: str = "", target: str = ""
) -> Task:
    """The examples of the files in the folder `path`, or of that one file; says how answers are found, with examples.

    Args:
      grader: a name of `grading/named.py`; empty: the first that gives every training target an answer.
      prompt, target: templates for rows with other fields.

    Raises:
      UserError: no such files, a row that is none, a row without an answer, or fewer rows than asked.
    """
    from premem_jax.running import progress  # not at the top: it imports JAX

    if not path:
        raise UserError(
            "data.path is empty: it is the folder of train.jsonl, and of heldout.jsonl and test.jsonl if any"
        )
    files = _files(path)
    make = partial(_checked, files, grader, prompt, target)
    if sum(storage.path(file).stat().length for found in files.values() for file in found) < LARGE:
        grader, found = make()
    else:
        from premem_jax.data import builders  # TFDS takes a while to import

        key = dict(files={split: rows.checksum_of(paths) for split, paths in files.items()})
        grader, found = builders.own_rows(key | dict(grader=grader, prompt=prompt, target=target), cache, make)
    chosen, splits = named.find(grader), _split(found, sizes, seed)
    progress.say(f"{path}: {', '.join(f'{len(found)} {split}' for split, found in splits.items())}; grader {grader}")
    for example in splits["train"][:SHOWN]:
        progress.say(f"  answer {example.answer!r} of a target that ends in {example.target[-60:]!r}")
    for example in (e for found in splits.values() for e in found):
        if not example.prompt.strip():
            raise UserError(f"{path}, row {example.id}: the prompt is empty; fill it in, or leave the row out")
    train = splits["train"]
    asked = {example.prompt for example in train}
    for split in ("heldout", "test"):
        if again := sum(example.prompt in asked for example in splits[split]):
            progress.say(f"  {again} of {len(splits[split])} {split} rows have the prompt of a training row")
    return Task(splits, lambda: (e.prompt + e.target for e in train), grader=chosen.grader)


def _checked(
    files: Mapping[str, Sequence[str]], grader: str, prompt: str, target: str
) -> tuple[str, dict[str, list[Example]]]:
    """The name of the grader, and all rows of each split with their answers."""
    items = {split: rows.items_of(found)[0] for split, found in files.items()}
    read = lambda split, answer: rows.parse(items[split], answer, prompt=prompt, target=target).examples
    if not grader:
        grader = named.guess([example.target for example in read("train", None)])
    chosen = named.find(grader)
    return grader, {split: read(split, lambda *row: answer_of(chosen, *row)) for split in files}


def answer_of(chosen: named.Named, where: str, target: str, answer: object) -> str:
    """The final answer of a row by a grader: its `answer`, reduced as a response is, or what the target gives.

    Raises:
      UserError: it has none.
    """
    if chosen.name == "none":
        return ""
    given = None if answer is None else answer_text(where, answer)
    if chosen.extract is None:
        if given is None:
            raise UserError(f"{where}: the grader {chosen.name} needs an answer in every row")
        return given
    found = chosen.extract(target if given is None else given) or (given or "").strip()
    if not found:
        raise UserError(f"{where}: no answer by the grader {chosen.name} in ...{(given or target)[-60:]!r}")
    return found


def _files(path: str) -> dict[str, list[str]]:
    """The files of each split that there is, in the order of their names."""
    place = storage.path(path)
    try:
        if place.is_file():
            return {"train": [str(place)]}
        if not place.is_dir():
            raise UserError(f"data.path={path}: there is no such file or folder")
        patterns = {
            split: [pattern.format(name) for name in names for pattern in PLACES] + [ALONE] * (split == "train")
            for split, names in NAMES.items()
        }
        found = {
            split: [sorted(map(str, files)) for pattern in of if (files := list(place.glob(pattern)))]
            for split, of in patterns.items()
        }
        others = sorted(file.name for file in place.iterdir())
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read ({error.strerror or error})") from error
    if not found["train"]:
        there = f"it has {', '.join(others)[:200]}" if others else "it is empty"
        raise UserError(f"data.path={path}: there is no train.jsonl and no train.parquet, {there}")
    for split, ways in found.items():
        if len(ways) > 1:
            raise UserError(f"data.path={path}: {split} is there twice, {ways[0][0]} and {ways[1][0]}; keep one")
    return {split: ways[0] for split, ways in found.items() if ways}


def _split(splits: dict[str, Sequence[Example]], sizes: dict[str, int], seed: int) -> dict[str, list[Example]]:
    """Splits of the sizes asked for; those that have no file are taken from the training rows."""
    rng = np.random.default_rng(seed)
    shuffled = {name: [found[i] for i in rng.permutation(len(found))] for name, found in splits.items()}
    rest = shuffled["train"]
    taken = sum(sizes[name] for name in ("heldout", "test") if name not in splits)
    if taken >= len(rest):
        raise UserError(f"data.heldout and data.test: {taken} of {len(rest)} rows leave none to train on")
    if "test" not in splits:
        if len(rest) < 2:
            raise UserError(f"{len(rest)} row cannot be split into train and test; give more rows, or a test file")
        count = sizes["test"] or max(round(TEST_SHARE * len(rest)), min(LEAST_TEST, len(rest) // 2))
        shuffled["test"], rest = rest[:count], rest[count:]
    if "heldout" not in splits:
        shuffled["heldout"], rest = rest[: sizes["heldout"]], rest[sizes["heldout"] :]
    shuffled["train"] = rest
    chosen = {}
    for name in ("train", "heldout", "test"):
        asked, there = sizes[name], len(shuffled[name])
        if asked > there or (name != "heldout" and not there):
            raise UserError(f"data.{name}={asked}: there are {there} rows for it")
        chosen[name] = sorted(shuffled[name][: asked or None], key=lambda example: example.id)
    return chosen
