r"""The graders of GSM8K and MATH in plain Python on bytes: the specification that the device kernel is held against.

MATH
1. The answer is what stands in the last `\boxed{...}`, or in the last `\fbox{...}` of a text without `\boxed`, up to
   the brace that closes it.
2. Where that is nothing (no box, none that closes, no brace right behind the word), it is what follows the last
   occurrence of the first phrase of the list in `rules.py` that occurs. White space, colons and dollars are trimmed off
   both ends, and one full stop off the end.
3. No phrase either: there is no answer.

GSM8K
1. The answer follows the last `The answer is: `, trimmed in the same way, or stands in a box there.
2. Without that phrase it follows the first `#### `, untrimmed.
3. It runs to the end of the text, since a sample ends at its stop marker. Commas are deleted.
4. Neither: there is no answer.

Both
A response without an answer is unparsed. Two answers are equal if their normal forms are (`normal_form.py`); where one
of them has none, if they are the same bytes. A reference may lack an answer too, and a response without one equals it.
There is no numeric tolerance: `18` and `18.0` differ.

One departure from the released code of Kang et al. (arXiv 2411.07681): where a GSM8K response has neither phrase nor
`#### `, that code compares the text from its fifth character on and calls it wrong. Here it is unparsed, never correct.
"""

from premem_jax.scoring.normal_form import normal_form
from premem_jax.scoring.rules import BOXES, TRIMMED, Phrase, Rules, rules_of
from premem_jax.scoring.verdict import Verdict


def boxed(text: bytes) -> bytes | None:
    """What stands in the last box, by its braces; None where there is no box, or one without a pair of them."""
    box = next((box for box in BOXES if box in text), None)
    if box is None:
        return None
    inside = text.rpartition(box)[2]
    if not inside.startswith(b"{"):
        return None
    depth = 0
    for i, byte in enumerate(inside):
        depth += (byte == ord("{")) - (byte == ord("}"))
        if depth == 0:
            return inside[1:i]
    return None


def trim(text: bytes) -> bytes:
    """Without white space, colons and dollars at the ends, and without one full stop at the end."""
    text = text.strip(TRIMMED)
    return text[:-1].rstrip(TRIMMED) if text.endswith(b".") else text


def behind(text: bytes, phrase: Phrase) -> bytes:
    """The answer that follows a phrase that occurs in the text."""
    rest = (text.partition if phrase.first else text.rpartition)(phrase.text)[2]
    inside = boxed(rest) if phrase.unbox else None
    if inside is not None:
        return inside
    return trim(rest) if phrase.trim else rest


def find_answer(text: bytes, rules: str | Rules) -> bytes | None:
    """The answer that a text gives, before normalisation; None where it gives none."""
    rules = rules_of(rules)
    answer = boxed(text) if rules.boxed else None
    if answer is None:
        phrase = next((phrase for phrase in rules.phrases if phrase.text in text), None)
        answer = None if phrase is None else behind(text, phrase)
    return None if answer is None else clean(answer, rules)


def clean(answer: bytes, rules: str | Rules) -> bytes:
    """An answer without the bytes that the rules delete from it: what raw equality looks at."""
    return answer.translate(None, delete=rules_of(rules).drop)


def equal(one: bytes | None, other: bytes | None) -> bool:
    """Whether two answers are the same; two that are missing are."""
    if one is None or other is None:
        return one is other
    forms = normal_form(one), normal_form(other)
    return one == other if None in forms else forms[0] == forms[1]


def grade_bytes(text: bytes, answer: bytes | None, rules: str | Rules) -> Verdict:
    """Verdict of one response against one reference answer (None: the reference gives none)."""
    found = find_answer(text, rules)
    if equal(found, None if answer is None else clean(answer, rules)):
        return Verdict.CORRECT
    return Verdict.UNPARSED if found is None else Verdict.WRONG
