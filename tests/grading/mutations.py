"""Texts with answers that no model would write and every grader must survive; seeded, a hundred thousand in seconds."""

import random

from premem_jax.grading.normal_form import normal_form
from premem_jax.grading.reference import find_answer

# What the rules look at, whole and in pieces that deletions may join; characters of one to four bytes, and broken ones.
# fmt: off
ATOMS = [
    *(rb"\frac", rb"\dfrac", rb"\tfrac", rb"\sqrt", rb"\text{ ", rb"\text{", rb"\left", rb"\right", rb"\!", rb"\\"),
    *(rb"^\circ", rb"^{\circ}", rb"\$", rb"\%", rb"\fr", b"ac", rb"\sq", b"rt", rb"\le", b"ft", rb"\ri", b"ght"),
    *(rb"\te", b"xt{ ", b"\\", b"{", b"}", b" ", b".", b"=", b"/", b"-", b",", b"$", b"%", b":", b"\n", b"\t", b"!"),
    *(b"^", b"t", b"d", b"(", b")", b"0", b"1", b"2", b"12", b"007", b"3", b"x", b"y", b"k", b"pi", b"0.5", b".5"),
    *(b"1/2", b"a/b", b"-3/4", "é".encode(), "½".encode(), "😀".encode(), b"\x80", b"\xff", b"\xc3", b"\0"),
    *(b"\x80" * 5, rb"\frac{1}{2}", rb"\sqrt{3}", rb"\frac12", rb"\sqrt2", rb"\sqrt ", rb"\frac1{2}", b"x=", b"{."),
    *(b" .", b" {", b"}{", b"\\sqrt{\x80", b"\\frac{\x80", b"\\frac1{\xbf", b"\\sqrt\x80"),
]
MARKERS = [
    *(b"The answer is: ", b"The answer is: $", b"#### ", b"####", b"answer is", b"FINAL ANSWER", b"Final Answer"),
    *(b"is:", b"ANSWER", b"Answer", b"answer", rb"\boxed{", rb"\boxed{", rb"\boxed{", rb"\boxed ", rb"\boxed"),
    *(rb"\fbox{", rb"\fbox"),
]
LONG = [
    *(b" " * 300, b"\n" * 300, b"x" * 300, b"{" * 260, rb"\!" * 140, b"1 " * 200, rb"\frac12" * 40, b"\t" * 280),
    b" ." * 130,
]
# fmt: on


def atoms(number: int, seed: int, most: int = 14) -> list[bytes]:
    """Texts of up to `most` atoms, without any answer to be found."""
    draw = random.Random(seed)
    return [b"".join(draw.choices(ATOMS, k=draw.randint(0, most))) for _ in range(number)]


class Mutator:
    """Draws (text, reference answer) pairs around real texts."""

    def __init__(self, texts: list[bytes], rules: str, seed: int):
        self._texts, self._rules, self._random = texts, rules, random.Random(seed)

    def pair(self) -> tuple[bytes, bytes | None]:
        """A text, and more often than not the answer it gives, or nearly so."""
        draw = self._random.random()
        if draw < 0.5:
            text = self._composed()
        elif draw < 0.97:
            text = self._mutated(self._real())
        else:
            text = self._random.choice([b"", b"\\boxed", b"\\boxed{}", b"#### ", b"answer", b"\xff" * 9])
        return text, self._answer(find_answer(text, self._rules))

    def pairs(self, number: int) -> tuple[list[bytes], list[bytes | None]]:
        """`number` texts and their reference answers."""
        texts, answers = zip(*(self.pair() for _ in range(number)), strict=True)
        return list(texts), list(answers)

    def _atoms(self, most: int) -> bytes:
        return b"".join(self._random.choices(ATOMS, k=self._random.randint(0, most)))

    def _real(self) -> bytes:
        text = self._random.choice(self._texts)
        return text[-self._random.choice([60, 200, 400]) :]

    def _composed(self) -> bytes:
        draw, parts = self._random, []
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            parts += [draw.choice([b"", b"So ", self._atoms(4)]), draw.choice(MARKERS), self._atoms(9)]
            parts.append(draw.choice([b"}", b"}", b"}}", b"}$.", b".", b"", b"$", self._long()]))
        return b"".join(parts)

    def _long(self) -> bytes:
        return self._random.choice(LONG) + self._atoms(4) if self._random.random() < 0.3 else self._atoms(3)

    def _mutated(self, text: bytes) -> bytes:
        draw = self._random
        for _ in range(draw.choice([0, 1, 1, 2, 4])):
            at = len(text) - int(len(text) * draw.random() ** 2)  # more often near the end
            to = at + draw.choice([0, 0, 1, 3])
            new = draw.choice([self._atoms(2), b"", draw.choice(MARKERS), text[at : at + 5], self._long()])
            text = text[:at] + new + text[to:]
        return text[: len(text) - draw.choice([0, 0, 0, 1, 7])]

    def _answer(self, own: bytes | None) -> bytes | None:
        draw = self._random
        kind = draw.random()
        if kind < 0.05:
            return None
        if own is None or kind < 0.2:
            return self._atoms(6)
        if kind < 0.65:
            return own
        if kind < 0.8:
            return normal_form(own) or own
        return self._mutated(own)
