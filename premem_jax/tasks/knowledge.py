"""Facts stated in one format and asked in another: a skill that takes both, for ladders of small models.

Every entity has a value under each relation. Base texts state facts, `e5 r3 v17`, entities by Zipf's law, beside prose:
a Markov chain of second order, on which the loss falls smoothly. A small share of the texts asks instead, in another
order, with other words for the relations, and about even entities alone: `q3 e4 v60`. Examples ask, too: those to train
on about even entities, held-out and test examples about odd ones, of which no text ever asks. The value alone is the
answer, so chance is 1 of `values`.
"""

import dataclasses
from functools import cached_property

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.tasks.task import Task

FREE_FORM = False
WORDS = 96  # of a base text, which makes 32 facts
CHAIN, NEXT = 32, (0.4, 0.3, 0.2, 0.1)  # words of the prose, and the probabilities of those that may follow two others


@dataclasses.dataclass(frozen=True)
class World:
    """What there is to know, and how base texts tell it."""

    entities: int = 512
    relations: int = 16
    values: int = 64
    zipf: float = 1.0  # exponent of the frequency of entities; e0 is the most frequent
    asked: float = 0.003  # share of the texts that ask
    prose: float = 0.5  # share of the texts that tell nothing
    seed: int = 0

    @cached_property
    def facts(self) -> np.ndarray:
        """Values (entities, relations)."""
        size = self.entities, self.relations
        return np.random.default_rng([self.seed, *b"facts"]).integers(self.values, size=size)

    @cached_property
    def chain(self) -> list:
        """The words that may follow two words, by these."""
        rng = np.random.default_rng([self.seed, *b"chain"])
        return rng.integers(CHAIN, size=(CHAIN, CHAIN, len(NEXT))).tolist()

    def cumulated(self, even: bool) -> np.ndarray:
        """Cumulated frequencies of all entities, or of the even ones, 0, 2, 4, ..."""
        often = np.arange(1, self.entities + 1) ** -self.zipf
        upto = np.cumsum(often[::2] if even else often)
        return upto / upto[-1]


def texts(world: World, count: int, seed: int, asking: bool = True) -> list[Example]:
    """The first `count` base texts under `seed`; with `asking` false, none of them asks.

    A pure function of its arguments, and the first n of a larger count are the same n texts.
    """
    cumulated = {even: world.cumulated(even) for even in (False, True)}
    asked = world.asked if asking else 0.0
    made = []
    for i in range(count):
        rng = np.random.default_rng([seed, *b"texts", i])
        kind = rng.random()
        if kind < world.prose:
            words = _prose(world, rng)
        else:
            asks = kind >= 1 - asked
            entity = np.searchsorted(cumulated[asks], rng.random(WORDS // 3)) * (2 if asks else 1)
            relation = rng.integers(world.relations, size=WORDS // 3)
            told = zip(entity.tolist(), relation.tolist(), world.facts[entity, relation].tolist(), strict=True)
            words = [f"q{r} e{e} v{v}" if asks else f"e{e} r{r} v{v}" for e, r, v in told]
        made.append(Example(i, "", " " + " ".join(words), ""))
    return made


def _prose(world: World, rng: np.random.Generator) -> list[str]:
    a, b = rng.integers(CHAIN, size=2).tolist()
    words = []
    for choice in rng.choice(len(NEXT), size=WORDS, p=NEXT).tolist():
        a, b = b, world.chain[a][b][choice]
        words.append(f"w{b}")
    return words


def questions(world: World, odd: bool) -> list[Example]:
    """All questions about odd entities, or about even ones, in an order of the world's seed."""
    made = [
        Example(e * world.relations + r, f"q{r} e{e}", f" v{v}", f"v{v}")
        for e in range(odd, world.entities, 2)
        for r, v in enumerate(world.facts[e].tolist())
    ]
    return [made[i] for i in np.random.default_rng([world.seed, *b"questions", odd]).permutation(len(made))]


def vocabulary(world: World) -> list[str]:
    """Every word of texts and examples."""
    sizes = {"e": world.entities, "r": world.relations, "q": world.relations, "v": world.values, "w": CHAIN}
    return [f"{letter}{i}" for letter, size in sizes.items() for i in range(size)]


def task(world: World, sizes: dict[str, int]) -> Task:
    """The task in a world, with some or (0) all of its questions, `heldout` before `test`.

    Raises:
      UserError: the world has fewer.
    """
    even, odd = questions(world, odd=False), questions(world, odd=True)
    train, heldout, test = (sizes[split] for split in ("train", "heldout", "test"))
    if train > len(even) or heldout + test > len(odd) or heldout == len(odd):
        raise UserError(
            f"data: asked for {train} training and {heldout} + {test} held-out and test examples, and the world has "
            f"{len(even)} and {len(odd)}"
        )
    splits = {"train": even[: train or None], "heldout": odd[:heldout], "test": odd[heldout:][: test or None]}
    base = lambda count, seed: texts(world, count, seed)
    return Task(splits, lambda: [" ".join(vocabulary(world))], base)


SIZES = (World.entities // 2 * World.relations,) * 2


def GRADER(response: str, answer: str) -> bool:
    """Whether a response is the value, and nothing else."""
    return response.strip() == answer


def is_solution(text: str) -> bool:
    """No text is more than an answer here."""
    return False


def final_answer(text: str) -> str:
    """The text itself."""
    return text


def load(path: str, sizes: dict[str, int], seed: int, cache: str) -> Task:
    """The task in the standard world of `seed`; `path` and `cache` are ignored."""
    return task(World(seed=seed), sizes)
