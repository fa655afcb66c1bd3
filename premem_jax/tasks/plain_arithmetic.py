"""Word problems of one step in ordinary English, generated, for pretrained models: short, and of mixed difficulty.

A third each are sums and differences of numbers of two digits, and products of the tables. The solution opens with one
of twelve words, independent of the question: `Well, 47+38=85`. So even a perfect model has a loss on a solution that it
has not memorized.
"""

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.grading.rules import Phrase, Rules
from premem_jax.tasks import arithmetic
from premem_jax.tasks.task import Task

FREE_FORM = False
GRADER = Rules(boxed=False, phrases=(Phrase(b"="),))
SIZES = None

QUESTIONS = {
    "+": (
        "{name} has {a} {item} and buys {b} more. How many?",
        "{name} counts {a} {item}, then {b} others. How many?",
        "There are {a} {item} here and {b} there. How many?",
    ),
    "-": (
        "{name} has {a} {item} and sells {b}. How many?",
        "Of {a} {item}, {name} loses {b}. How many are left?",
        "There were {a} {item}, and {b} are gone. How many?",
    ),
    "*": (
        "{name} fills {b} boxes with {a} {item} each. How many?",
        "{name} gets {a} {item} on each of {b} days. How many?",
        "There are {b} rows of {a} {item}. How many?",
    ),
}
NAMES = ("Anna", "Emma", "Lucy", "Mei", "Nina", "Omar", "Paul", "Peter", "Rosa", "Tom")
OPENINGS = ("Well", "So", "Now", "Yes", "Right", "Sure", "First", "Here", "Thus", "Then", "Simply", "Okay")
RESULTS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """Generates the given number of problems of each split; `path` and `cache` are ignored."""
    arithmetic.sized(sizes, "plain_arithmetic")
    splits = {split: problems(split, size, seed) for split, size in sizes.items()}
    return Task(splits, lambda: (e.prompt + e.target for e in splits["train"]))


def problems(split: str, count: int, seed: int) -> list[Example]:
    """The first `count` problems of `split` (train, heldout or test) under `seed`.

    A pure function of its arguments, and the first n of a larger count are the same n examples. No question occurs
    twice, and no two splits share a question, whatever their counts and seeds.
    """
    rng = lambda i: np.random.default_rng([seed, *b"plain", arithmetic.SPLITS.index(split), i])
    return arithmetic.distinct(count, lambda i, seen: _problem(rng(i), i, split, seen))


def is_solution(text: str) -> bool:
    """Whether the text has the equation of a solution."""
    return "=" in text


def final_answer(solution: str) -> str:
    """What stands behind the last equals sign; raises ValueError if there is nothing."""
    _, sign, answer = solution.rpartition("=")
    if not sign or not answer.strip():
        raise ValueError(f"the answer has no result of an equation: ...{solution[-60:]!r}")
    return answer.strip()


def _problem(rng: np.random.Generator, i: int, split: str, seen: set[str]) -> Example:
    """Draws until a question belongs to `split` and is not in `seen`."""
    pick = lambda options: options[int(rng.integers(len(options)))]
    while True:
        operation = pick(tuple(QUESTIONS))
        a = int(rng.integers(3, 13) if operation == "*" else rng.integers(20, 100))
        b = int(rng.integers(3, 10) if operation == "*" else rng.integers(11, a if operation == "-" else 100))
        words = dict(name=pick(NAMES), item=pick(arithmetic.ITEMS))
        prompt = pick(QUESTIONS[operation]).format(a=a, b=b, **words)
        if arithmetic.split_of(prompt) == split and prompt not in seen:
            answer = str(RESULTS[operation](a, b))
            solution = f" {pick(OPENINGS)}, {a}{operation}{b}={answer}"
            return Example(i, prompt, solution, answer, {"operation": operation})
