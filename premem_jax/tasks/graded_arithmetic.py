"""Arithmetic word problems of several types, some common and easy, others rare and hard.

For curation, examples must differ in difficulty, which they hardly do in `arithmetic`. Here the types differ in
operations, depth, distractors and wording. Solutions and base texts are worded as in `arithmetic`; base texts have only
one-step problems. Every split has the types in the same shares.

An example's `metadata` has its `type`, its `operations` in order (with the type this is the skeleton of a problem), and
a `difficulty` that counts steps and distractors.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.tasks import arithmetic
from premem_jax.tasks.arithmetic import base_texts
from premem_jax.tasks.gsm8k import final_answer, is_solution
from premem_jax.tasks.task import Task

__all__ = ["GRADER", "SIZES", "final_answer", "is_solution", "load"]

FREE_FORM = arithmetic.FREE_FORM
GRADER = arithmetic.GRADER
SIZES = None


@dataclass(frozen=True)
class Type:
    """Common properties of the problems of a type."""

    share: float  # of the problems of a split
    steps: int = 1
    operations: str = "+-"
    distractors: int = 0
    wording: str = "forwards"  # asks for the end value; "backwards": for the start value; "compared": two people


TYPES = {
    "one_step": Type(0.45),
    "distracted": Type(0.12, distractors=2),
    "product": Type(0.08, operations="*"),
    "compared": Type(0.12, wording="compared"),
    "backwards": Type(0.15, wording="backwards"),
    "two_steps": Type(0.08, steps=2),
}

COMPARED = {
    "+": ("{friend} has {x} more than {name} .", "{friend} owns {x} {item} more than {name} ."),
    "-": ("{friend} has {x} fewer than {name} .", "{friend} owns {x} {item} fewer than {name} ."),
    "ask": ("How many {item} does {friend} have ?", "What is the number of {item} of {friend} ?"),
}
# The story gives the end value and asks for the start value: losses are added, gains subtracted.
BACKWARDS = {
    "+": arithmetic.POOL_B["-"],
    "-": arithmetic.POOL_B["+"],
    "end": ("Now {name} has {v} {item} .", "Now {v} {item} are left .", "This makes {v} {item} now ."),
    "ask": ("How many {item} did {name} have at first ?", "How many {item} were there to begin with ?"),
}


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """Generates the given number of problems of each split; `path` and `cache` are ignored."""
    arithmetic.sized(sizes, "graded_arithmetic")
    return Task({split: problems(split, size, seed) for split, size in sizes.items()}, vocabulary, base_texts)


def problems(split: str, count: int, seed: int) -> list[Example]:
    """The first `count` problems of `split` (train, heldout or test) under `seed`.

    A pure function of its arguments, and the first n of a larger count are the same n examples. No question occurs
    twice, and no two splits share a question, whatever their counts and seeds.
    """
    shares = [type.share for type in TYPES.values()]

    def make(i: int, seen: set[str]) -> Example:
        rng = np.random.default_rng([seed, *b"graded", arithmetic.SPLITS.index(split), i])
        return _problem(rng, i, str(rng.choice(list(TYPES), p=shares)), split, seen)

    return arithmetic.distinct(count, make)


def variants(example: Example, seed: int) -> Iterator[Example]:
    """Endless problems with the skeleton of `example` and other numbers and words, of the split `train`."""
    name, operations = example.metadata["type"], example.metadata["operations"]
    for i in range(2**31):
        rng = np.random.default_rng([seed, *b"variant", example.id, i])
        yield _problem(rng, i, name, "train", {example.prompt}, operations)


def vocabulary() -> list[str]:
    """Every word of a problem or a base text, sorted."""
    phrases = [phrase for table in (COMPARED, BACKWARDS) for family in table.values() for phrase in family]
    words = {word for phrase in phrases for word in phrase.split() if not word.startswith("{")}
    return sorted(words.union(arithmetic.vocabulary()))


def _problem(rng, i: int, name: str, split: str, seen: set[str], operations: str = "") -> Example:
    """Draws until a question belongs to `split`, is not in `seen` and has the operations, where these are given."""
    type = TYPES[name]
    while True:
        program = _program(rng, type)
        found = "".join(step[1] for step in program)
        if operations and found != operations:
            continue
        person, friend = (arithmetic.NAMES[k] for k in rng.choice(len(arithmetic.NAMES), 2, replace=False))
        item, thing = (arithmetic.ITEMS[k] for k in rng.choice(len(arithmetic.ITEMS), 2, replace=False))
        words = {"name": person, "item": item, "friend": friend, "thing": thing}
        prompt = _question(rng, type, program, words)
        if arithmetic.split_of(prompt) == split and prompt not in seen:
            told = words | ({"name": friend} if type.wording == "compared" else {})
            solution = arithmetic.worded_solution(rng, program, told)
            metadata = {"type": name, "operations": found, "difficulty": str(type.steps + type.distractors)}
            return Example(i, prompt, f" {solution}", str(program[-1][-1]), metadata)


def _program(rng, type: Type):
    """A chain of steps as in `arithmetic`, with the operations of the type."""
    while True:
        program = arithmetic.draw_steps(rng, int(rng.integers(3, 31)), type.steps)
        if all(step[1] in type.operations for step in program):
            return program


def _question(rng, type: Type, program, words: dict[str, str]) -> str:
    say = lambda family, **numbers: family[int(rng.integers(len(family)))].format(**words, **numbers)
    usual, start = arithmetic.POOL_B, program[0][0]
    if type.wording == "backwards":
        [(_, op, x, _)] = program
        sentences, ask = [say(BACKWARDS[op], x=x), say(BACKWARDS["end"], v=start)], BACKWARDS["ask"]
    elif type.wording == "compared":
        [(_, op, x, _)] = program
        sentences, ask = [say(usual["start"], v=start), say(COMPARED[op], x=x)], COMPARED["ask"]
    else:
        sentences, ask = [say(usual["start"], v=start)], usual["ask"]
        sentences += [say(usual[op], x=x) for _, op, x, _ in program]
    for _ in range(type.distractors):
        distractor = say(arithmetic.DISTRACTORS, x=int(rng.integers(2, arithmetic.LARGEST + 1)))
        sentences.insert(int(rng.integers(len(sentences) + 1)), distractor)
    return " ".join([*sentences, say(ask), "Answer :"])
