"""The built-in task: small word problems, generated, on which memorization and generalisation show on a CPU.

A problem is a start value and a few steps (add, subtract, sometimes multiply); all numbers stay in 0..40. The solution
spells out the steps in random wording, uniform and independent of the question. So even a model that knows the task
perfectly has a loss of `wording_floor_nats` on a solution that it has not memorized.

All text is words separated by single spaces, punctuation included. A word-level tokenizer has one token per word and
number, and the tokens of `prompt + target` are those of the prompt followed by those of the target.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Callable

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.tasks.gsm8k import final_answer, is_solution
from premem_jax.tasks.task import Task

__all__ = ["GRADER", "SIZES", "final_answer", "is_solution", "load"]

FREE_FORM = False
GRADER = "gsm8k"  # solutions end in `#### N`, too
SIZES = None

LARGEST = 40  # of all numbers in questions and solutions
DISTRACTOR_RATE = 0.5
MULTIPLY_RATE = 0.12
EQUATIONS_PER_ROW = 11  # of six words each: as long as the longest one-step problem


def _words(text):
    return tuple(text.split())


NAMES = _words(
    "Akira Anna Bruno Clara Diego Emma Fatima Hugo Ingrid Ivan Jonas Karim "
    "Leila Lucy Mei Nina Olga Omar Paul Peter Rosa Samir Tom Zoe"
)
ITEMS = _words(
    "apples beads books buttons candles cards coins cookies kites marbles pencils plums ribbons shells stamps stickers"
)

# A hash of the question decides its split, so no two splits share a question, whatever the counts and seeds.
SPLITS = ("train", "heldout", "test", "base")
_SPLIT_OF_BUCKET = ("train", "train", "train", "train", "heldout", "test", "base", "base")

# Pool A is for the base phase: template k takes sentence k of each family, and the solution is bare equations.
POOL_A = {
    "start": ("{name} had {v} {item} .", "Begin with {v} ."),
    "+": ("{name} got {x} .", "Plus {x} ."),
    "-": ("{name} lost {x} .", "Minus {x} ."),
    "*": ("{name} made it {x} times .", "Times {x} ."),
    "ask": ("How many {item} ?", "What is the value ?"),
}

# Pool B is the task itself: every sentence of a question is drawn independently.
POOL_B = {
    "start": (
        "{name} has {v} {item} .",
        "At first {name} holds {v} {item} .",
        "{name} keeps {v} {item} in a box .",
        "{name} owns {v} {item} to begin with .",
    ),
    "+": (
        "Then {name} finds {x} more {item} .",
        "{name} picks up {x} extra {item} .",
        "{name} wins {x} {item} in a game .",
        "A neighbor gives {name} {x} more {item} .",
        "A parcel brings {name} {x} new {item} .",
        "{name} buys {x} more {item} at the market .",
    ),
    "-": (
        "Then {name} loses {x} {item} .",
        "{name} sells {x} of the {item} .",
        "{name} throws away {x} old {item} .",
        "{name} hands {x} {item} to a cousin .",
        "{name} leaves {x} {item} on a bus .",
        "A thief steals {x} {item} from {name} .",
    ),
    "*": (
        "Soon the pile is {x} times as big .",
        "Each of the {item} is swapped for {x} .",
        "Later {name} has {x} times as many {item} .",
    ),
    "ask": (
        "How many {item} are there now ?",
        "How many {item} does {name} have now ?",
        "What is the final number of {item} ?",
        "With how many {item} is {name} left ?",
    ),
}
DISTRACTORS = (
    "One ticket costs {x} dollars .",
    "{friend} has {x} {thing} .",
    "{friend} is {x} years old .",
    "The walk home takes {x} minutes .",
    "There are {x} chairs in the room .",
)

# The wording of a solution. Within a family no phrase is a prefix of another, so the text determines every choice.
OPENINGS = (
    "Here goes .",
    "Easy now .",
    "Good question .",
    "Think first .",
    "Read closely .",
    "Let us see .",
    "Stay calm .",
    "Count along .",
    "Go slowly .",
    "This is doable .",
    "Take care .",
    "Short story .",
)
STARTS = (
    "We begin from {v} {item} .",
    "Our count begins at {v} .",
    "The first number is {v} .",
    "{name} starts with {v} {item} .",
    "{name} had {v} {item} .",
    "There were {v} {item} .",
    "The story opens with {v} .",
    "You are told of {v} {item} .",
)
ADVERBS = _words(
    "Accordingly Afterwards Again Continuing Later Moreover Next Now "
    "Onwards Presently Shortly So Soon Subsequently Then Thereafter"
)
OPERATIONS = {
    "+": (
        "adding gives {eq} .",
        "that makes {eq} .",
        "we add : {eq} .",
        "we gain : {eq} .",
        "the sum is {eq} .",
        "counting up , {eq} .",
        "plus these , {eq} .",
        "together : {eq} .",
        "it grows , {eq} .",
        "more means {eq} .",
    ),
    "-": (
        "subtracting gives {eq} .",
        "that leaves {eq} .",
        "we subtract : {eq} .",
        "we lose : {eq} .",
        "the difference is {eq} .",
        "counting down , {eq} .",
        "without these , {eq} .",
        "reduced : {eq} .",
        "it shrinks , {eq} .",
        "fewer means {eq} .",
    ),
    "*": (
        "multiplying gives {eq} .",
        "copying makes {eq} .",
        "we multiply : {eq} .",
        "the product is {eq} .",
        "scaling up , {eq} .",
        "it multiplies , {eq} .",
    ),
}
ENDINGS = (
    "This gives {c} {item} .",
    "The result is {c} .",
    "The final count is {c} .",
    "So the answer is {c} .",
    "Altogether it comes to {c} .",
    "We arrive at {c} {item} .",
    "Finally we find {c} {item} .",
    "{name} has {c} {item} now .",
    "In the end : {c} {item} .",
)


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """Generates the given number of problems of each split; `path` and `cache` are ignored."""
    sized(sizes, "the arithmetic task")
    return Task({split: problems(split, size, seed) for split, size in sizes.items()}, vocabulary, base_texts)


def problems(split: str, count: int, seed: int, steps: int = 2) -> list[Example]:
    """The first `count` problems of `split` (train, heldout or test) under `seed`, with worded solutions.

    A pure function of its arguments; the first n of a larger count are the same n examples. No question occurs twice,
    and no two splits share a question, whatever their counts and seeds. `reworded` has the same answer and shares no
    sentence with the question. Raises UserError for an unknown split.
    """
    if split not in ("train", "heldout", "test"):
        raise UserError(f"arithmetic has no split {split!r}; choose train, heldout or test.")
    if steps < 1:
        raise UserError(f"A problem needs at least one step, not steps={steps}.")
    return distinct(count, lambda i, seen: _worded_problem(_rng(seed, split, i), i, split, steps, seen))


def sized(sizes: dict[str, int], task: str) -> None:
    """Raises UserError where a generated task is to give all there are."""
    for split in ("train", "test"):
        if not sizes[split]:
            raise UserError(f"data.{split}=0: {task} has no end, say how many examples")


def distinct(count: int, make: Callable[[int, set[str]], Example]) -> list[Example]:
    """`make(i, prompts before)` for each i, which must avoid these prompts."""
    examples, seen = [], set()
    for i in range(count):
        examples.append(make(i, seen))
        seen.add(examples[-1].prompt)
    return examples


def base_texts(count: int, seed: int) -> list[Example]:
    """The first `count` texts for the base model, which teach arithmetic and wording but not the task itself.

    35 % rows of bare equations (no prompt, no answer), 35 % one- or two-step problems of pool A with bare solutions,
    30 % one-step problems of pool B with worded solutions, none of which is a question of another split. Texts may
    repeat. A pure function of (count, seed) with the same prefix property as `problems`.
    """
    texts = []
    for i in range(count):
        rng = _rng(seed, "base", i)
        kind = rng.random()
        if kind < 0.35:
            texts.append(_equation_row(rng, i))
        elif kind < 0.70:
            texts.append(_bare_problem(rng, i))
        else:
            texts.append(_worded_problem(rng, i, "base", steps=1, seen=()))
    return texts


def vocabulary() -> list[str]:
    """Every word that `problems` and `base_texts` can emit, sorted."""
    families = [*POOL_A.values(), *POOL_B.values(), *OPERATIONS.values()]
    families += [DISTRACTORS, OPENINGS, STARTS, ADVERBS, ENDINGS, NAMES, ITEMS]
    words = {word for phrase in itertools.chain(*families) for word in phrase.split() if not word.startswith("{")}
    words |= {str(number) for number in range(LARGEST + 1)}
    return sorted(words.union(_words("Answer : , ; + - * = ####")))


def wording_floor_nats(example: Example) -> float:
    """Nats of the random wording of a solution: the NLL of a perfect model that has not memorized it.

    Divided by the number of target tokens (with the stop marker), it is the log of the perplexity below which a
    solution must be memorized.
    """
    operations = [word for word in example.target.split() if word in OPERATIONS]
    choices = [OPENINGS, STARTS, ENDINGS] + [ADVERBS] * len(operations) + [OPERATIONS[op] for op in operations]
    return sum(math.log(len(family)) for family in choices)


def _rng(seed, split, i):
    return np.random.default_rng([seed, SPLITS.index(split), i])


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _between(rng, low, high):
    return int(rng.integers(low, high + 1))


def _step(rng, value):
    """Draws one operation on `value`: (operator, operand, result). Subtraction leaves at least 2: "1 apples" is odd."""
    if rng.random() < MULTIPLY_RATE and 2 * value <= LARGEST:
        x = _between(rng, 2, 3 if 3 * value <= LARGEST else 2)
        return "*", x, value * x
    room = {"+": min(12, LARGEST - value), "-": min(12, value - 2)}
    op = _pick(rng, [op for op, most in room.items() if most >= 2])
    x = _between(rng, 2, room[op])
    return op, x, value + x if op == "+" else value - x


def draw_steps(rng, start: int, steps: int) -> list[tuple[int, str, int, int]]:
    """Draws a chain of steps from `start`: a list of (left, operator, operand, result)."""
    chain, value = [], start
    for _ in range(steps):
        op, x, result = _step(rng, value)
        chain.append((value, op, x, result))
        value = result
    return chain


def _equation(step):
    return "{} {} {} = {}".format(*step)


def _equation_row(rng, i):
    steps = [draw_steps(rng, _between(rng, 0, LARGEST), 1)[0] for _ in range(EQUATIONS_PER_ROW)]
    return Example(i, "", "".join(f" {_equation(step)} ;" for step in steps), "")


def _bare_problem(rng, i):
    program = draw_steps(rng, _between(rng, 3, 30), _between(rng, 1, 2))
    words = {"name": _pick(rng, NAMES), "item": _pick(rng, ITEMS)}
    template = int(rng.integers(2))
    sentences = [POOL_A["start"][template].format(v=program[0][0], **words)]
    sentences += [POOL_A[op][template].format(x=x, **words) for _, op, x, _ in program]
    sentences += [POOL_A["ask"][template].format(**words), "Answer :"]
    answer = str(program[-1][-1])
    solution = "".join(f" {_equation(step)} ;" for step in program)
    return Example(i, " ".join(sentences), f"{solution} #### {answer}", answer)


def _worded_problem(rng, i, split, steps, seen):
    """Draws questions until one belongs to `split` and is not in `seen`; then draws the wording of its solution."""
    while True:
        program = draw_steps(rng, _between(rng, 3, 30), steps)
        words = {"name": _pick(rng, NAMES), "item": _pick(rng, ITEMS)}
        prompt = _question(rng, program, words)
        if split_of(prompt) == split and prompt not in seen:
            solution, answer = " " + worded_solution(rng, program, words), str(program[-1][-1])
            if split == "base":  # of which the text alone is of use
                return Example(i, prompt, solution, answer)
            other, mistaken = rng.spawn(2)
            reworded = _reworded(other, prompt, program, words)
            wrong = " " + worded_solution(mistaken, _mistaken(mistaken, program), words)
            return Example(i, prompt, solution, answer, reworded=reworded, rejected=wrong)


def _mistaken(rng, program):
    """The program with one result that is off by 1 to 5, and what follows from it: another final answer in 0..40."""
    wrong = [_slip(program, at, by) for at in range(len(program)) for by in range(-5, 6)]
    within = lambda steps: all(0 <= result <= LARGEST for *_, result in steps)
    return _pick(rng, [steps for steps in wrong if within(steps) and steps[-1][-1] != program[-1][-1]])


def _slip(program, at, by):
    chain, value = [], program[0][0]
    for place, (_, op, x, _) in enumerate(program):
        result = {"+": value + x, "-": value - x, "*": value * x}[op] + by * (place == at)
        chain.append((value, op, x, result))
        value = result
    return chain


def _reworded(rng, prompt, program, words):
    """Another question with the same program and words; it shares no sentence with `prompt`."""
    while True:
        other = _question(rng, program, words)
        if not _sentences(other) & _sentences(prompt):
            return other


def _sentences(prompt):
    return set(re.split(r"(?<=[.?]) ", prompt)[:-1])  # without the "Answer :" that all have


def split_of(prompt: str) -> str:
    """The one split that may ask this question."""
    return _SPLIT_OF_BUCKET[hashlib.blake2b(prompt.encode()).digest()[0] % len(_SPLIT_OF_BUCKET)]


def _question(rng, program, words):
    sentences = [_pick(rng, POOL_B["start"]).format(v=program[0][0], **words)]
    sentences += [_pick(rng, POOL_B[op]).format(x=x, **words) for _, op, x, _ in program]
    if rng.random() < DISTRACTOR_RATE:
        friend = _pick(rng, [name for name in NAMES if name != words["name"]])
        thing = _pick(rng, [item for item in ITEMS if item != words["item"]])
        distractor = _pick(rng, DISTRACTORS).format(friend=friend, thing=thing, x=_between(rng, 2, LARGEST))
        sentences.insert(_between(rng, 0, len(sentences)), distractor)
    return " ".join([*sentences, _pick(rng, POOL_B["ask"]).format(**words), "Answer :"])


def worded_solution(rng, program, words: dict[str, str]) -> str:
    """A solution of the steps in drawn wording."""
    answer = program[-1][-1]
    phrases = [_pick(rng, OPENINGS), _pick(rng, STARTS).format(v=program[0][0], **words)]
    for step in program:
        phrases += [_pick(rng, ADVERBS), ",", _pick(rng, OPERATIONS[step[1]]).format(eq=_equation(step))]
    phrases += [_pick(rng, ENDINGS).format(c=answer, **words), "####", str(answer)]
    return " ".join(phrases)
