"""New examples similar to given ones, from several sources, without test questions and without repetitions.

A source orders candidates for an original; `collect` takes the first new ones. Examples of earlier rounds are never
taken again, so the rounds are disjoint.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.data.rewriting import Rewriter
from premem_jax.data.rows import Answer
from premem_jax.data.sources import fields, jsonl
from premem_jax.errors import UserError
from premem_jax.running import storage

MOST_TRIES = 10_000  # candidates for one original that are looked at in a round
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_SMALL.split())}


@dataclass(frozen=True)
class Source:
    """Where new examples come from."""

    candidates: Callable[[Example], Iterable[Example]]  # for an original, in a fixed order
    endless: bool = False
    keeps_numbers: bool = False  # a question is another one if its numbers are others; see `normal_form`
    prepare: Callable[[Sequence[Example], Sequence[int]], None] | None = None  # before so many of each are looked at


@dataclass(frozen=True)
class Collected:
    """New examples, the original of each, and counts of rejected candidates by reason."""

    examples: list[Example]
    originals: list[int]
    left_out: dict[str, int]


def generated(variants: Callable[[Example, int], Iterable[Example]], seed: int) -> Source:
    """A task's generator: the same skeleton with other numbers and words.

    Questions of a generated task share skeletons with test questions, so only numbers distinguish them.
    """
    return Source(lambda original: variants(original, seed), endless=True, keeps_numbers=True)


def pool(path: str, answer_of: Answer) -> Source:
    """Rows {original, prompt, target, answer} of a JSON Lines file: `original` is the id of a training example.

    `answer_of` reads the final answer of a row.

    Raises:
      UserError: an unreadable file, or a row that is malformed or has no such answer; names the line.
    """
    try:
        rows = jsonl(storage.path(path).read_bytes(), path).items
    except OSError as error:
        raise UserError(f"study.pool={path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise UserError(f"study.pool={path}: the file is empty")
    of: dict[int, list[Example]] = {}
    for where, text in rows:
        row = fields(where, text, ("original", "prompt", "target", "answer"))
        if type(row["original"]) is not int or not all(isinstance(row[key], str) for key in ("prompt", "target")):
            raise UserError(f"{where}: original must be an id, prompt and target texts")
        answer = answer_of(where, row["target"], row["answer"])
        of.setdefault(row["original"], []).append(Example(0, row["prompt"], row["target"], answer))
    return Source(lambda original: of.get(original.id, ()))


def own_samples(texts: Iterable[Mapping]) -> Source:
    """The model's own correct samples on training questions, the rarest first.

    Args:
      texts: rows {split, example, responses: [{text, verdict}]} as a run keeps them.
    """
    of: dict[int, dict[str, int]] = {}
    for row in (row for row in texts if row["split"] == "train"):
        counts = of.setdefault(row["example"], {})
        for text in (each["text"] for each in row["responses"] if each["verdict"] == "correct"):
            counts[text] = counts.get(text, 0) + 1

    def candidates(original: Example) -> Iterator[Example]:
        counts = of.get(original.id, {})
        for text in sorted(counts, key=lambda text: (counts[text], text)):
            yield replace(original, target=text if text.startswith(" ") else f" {text}", reworded="")

    return Source(candidates, keeps_numbers=True)  # the questions are those of the training set


def rewritten(rewriter: Rewriter) -> Source:
    """Originals rewritten by a model behind an endpoint."""
    return Source(rewriter.candidates, endless=True, prepare=rewriter.prepare)


class Collector:
    """Takes new examples from a source, one round after another.

    Args of the constructor: `test`, what must not be asked; `taken`, the originals and all that was added before.
    """

    def __init__(self, source: Source, test: Sequence[Example], taken: Iterable[Example]):
        self._source = source
        self._test = {normal_form(example.prompt, source.keeps_numbers) for example in test}
        self._taken = {(example.prompt, example.target) for example in taken}

    def most(self, originals: Sequence[Example]) -> np.ndarray | None:
        """Number of new examples available for each original (E,); None if unlimited."""
        if self._source.endless:
            return None
        return np.array([sum(self._left_out(each) == "" for each in self._unlike(one)) for one in originals])

    def collect(self, originals: Sequence[Example], counts: Sequence[int]) -> Collected:
        """The given number of new examples for each original; their ids are their positions.

        Raises:
          UserError: the source has no more.
        """
        examples, of, left_out = [], [], Counter()
        if self._source.prepare:
            self._source.prepare(originals, counts)
        for original, count in zip(originals, counts, strict=True):
            found: list[Example] = []
            candidates = islice(self._source.candidates(original), MOST_TRIES)
            while len(found) < count:
                candidate = next(candidates, None)
                if candidate is None:
                    raise UserError(f"example {original.id}: {count} like it are wanted, and there are {len(found)}")
                why = self._left_out(candidate)
                if why:
                    left_out[why] += 1
                else:
                    self._taken.add((candidate.prompt, candidate.target))
                    found.append(candidate)
            examples += found
            of += [original.id] * len(found)
        return Collected([replace(x, id=i) for i, x in enumerate(examples)], of, dict(left_out))

    def _unlike(self, original: Example) -> list[Example]:
        """The candidates for an original, each once."""
        return list({(each.prompt, each.target): each for each in self._source.candidates(original)}.values())

    def _left_out(self, candidate: Example) -> str:
        """The reason to reject a candidate; empty if it is new."""
        if normal_form(candidate.prompt, self._source.keeps_numbers) in self._test:
            return "asked by the test"
        return "taken already" if (candidate.prompt, candidate.target) in self._taken else ""


def normal_form(question: str, keeps_numbers: bool) -> str:
    """A question without names, spacing, case and punctuation, to compare questions.

    Capitalised words count as names. All numbers are equal; with `keeps_numbers` each has one spelling.
    """
    text = re.sub(r"\b[A-Z][a-z]+\b", "@", question).lower()
    text = " ".join(
        _NUMBER_WORDS.get(word, word) for word in re.findall(r"[a-z]+|@|\d[\d,]*(?:\.\d+)?|[-+*/=^%$]", text)
    )
    return re.sub(r"\d[\d,]*(?:\.\d+)?", lambda found: _number(found[0]) if keeps_numbers else "#", text)


def _number(text: str) -> str:
    plain = text.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else str(int(plain))
