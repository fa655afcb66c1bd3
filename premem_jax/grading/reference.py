r"""The graders of GSM8K and MATH in plain Python on bytes: the specification of the device kernel.

MATH
1. The answer is the content of the last `\boxed{...}` up to its closing brace; in a text without `\boxed`, of the last
   `\fbox{...}`.
2. If there is no such content (no box, an unclosed box, no brace right after the word), the answer follows a phrase:
   of the list in `rules.py`, the first phrase that occurs in the text, at its last occurrence. White space, colons and
   dollars are trimmed from both ends, and one full stop from the end.
3. Without a phrase, there is no answer.

GSM8K
1. The answer follows the last `The answer is: `, trimmed in the same way, or is in a box there.
2. Without that phrase it follows the first `#### `, untrimmed.
3. It extends to the end of the text, because a sample ends at its stop marker. Commas are deleted.
4. With neither, there is no answer.

Both
A response without an answer is unparsed. Two answers are equal if their normal forms are (`normal_form.py`); if one has
no normal form, if their bytes are equal. If the reference has no answer either, a response without one equals it. There
is no numeric tolerance: `18` and `18.0` differ.

Departures from the released code of Kang et al. (arXiv 2411.07681)
fbox      That code finds the last `\fbox` but opens none. Here it counts like a box.
inside    It deletes every colon and dollar after a phrase, in MATH every newline too. Here only those at the ends go.
unclosed  It removes `\boxed{` and the last `}`, which may not belong together (`\boxed{1}+\boxed{2}`). Here a box ends
          at its own brace.
colon     In GSM8K it looks for `The answer is` and skips two more characters, whatever they are: `The answer is 18`
          gives `8`. Here the colon and the space belong to the phrase.
unboxing  It opens a box only if nothing else follows the phrase. Here, GSM8K opens the last box after the phrase, and
          MATH none.
space     It trims Unicode white space. Here only the six white-space characters of ASCII.
nothing   For a GSM8K response with neither phrase nor `#### ` it compares the text from the fifth character on and says
          wrong. Here such a response is unparsed.
It also calls a response unparsed if neither it nor the reference has an answer, and reads references only by the box or
by `#### `.

Counts on real texts (all reference solutions and outputs of real models): answers that differ, changes of correctness,
and answers that each departure alone changes.

texts           rules   texts    differ  correctness  colon  inside  unboxing  unclosed  nothing
GSM8K           gsm8k  16,706     7,916            2      3       1         1         0    7,913
MATH            math   13,300         0            0      0       0         0         0        0
GSM8K, no box   math   16,706       115            0      0     115         0         0        0
MATH, no ####   gsm8k  13,300    13,300           40    114      32        72         2   13,186

The 7,913 are outputs of models that end in `A: N`. In the last row, correctness changes where a solution of MATH says
`The answer is $\boxed{5}$`. No text has an `\fbox`, or white space beyond ASCII after a phrase.
"""

from premem_jax.grading.normal_form import normal_form
from premem_jax.grading.rules import BOXES, TRIMMED, Phrase, Rules, rules_of
from premem_jax.grading.verdict import Verdict


def boxed(text: bytes) -> bytes | None:
    """The content of the last box; None if there is no box, or its braces are missing or unclosed."""
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
    """Removes white space, colons and dollars at both ends, and one full stop at the end."""
    text = text.strip(TRIMMED)
    return text[:-1].rstrip(TRIMMED) if text.endswith(b".") else text


def behind(text: bytes, phrase: Phrase) -> bytes:
    """The answer after a phrase; the phrase must occur in the text."""
    rest = (text.partition if phrase.first else text.rpartition)(phrase.text)[2]
    inside = boxed(rest) if phrase.unbox else None
    if inside is not None:
        return inside
    return trim(rest) if phrase.trim else rest


def find_answer(text: bytes, rules: str | Rules) -> bytes | None:
    """The answer in a text, before normalisation; None if there is none."""
    rules = rules_of(rules)
    answer = boxed(text) if rules.boxed else None
    if answer is None:
        phrase = next((phrase for phrase in rules.phrases if phrase.text in text), None)
        answer = None if phrase is None else behind(text, phrase)
    return None if answer is None else clean(answer, rules)


def clean(answer: bytes, rules: str | Rules) -> bytes:
    """An answer without the bytes that the rules delete, for comparison byte by byte."""
    return answer.translate(None, delete=rules_of(rules).drop)


def normalised(text: bytes, rules: str | Rules) -> bytes | None:
    """The answer in a text by its normal form, or as it is where it has none; None if there is no answer."""
    answer = find_answer(text, rules)
    form = None if answer is None else normal_form(answer)
    return answer if form is None else form


def equal(one: bytes | None, other: bytes | None) -> bool:
    """Whether two answers are equal; two missing ones are."""
    if one is None or other is None:
        return one is other
    forms = normal_form(one), normal_form(other)
    return one == other if None in forms else forms[0] == forms[1]


def grade_bytes(text: bytes, answer: bytes | None, rules: str | Rules) -> Verdict:
    """Verdict of one response against one reference answer (None: the reference has no answer)."""
    found = find_answer(text, rules)
    if equal(found, None if answer is None else clean(answer, rules)):
        return Verdict.CORRECT
    return Verdict.UNPARSED if found is None else Verdict.WRONG
