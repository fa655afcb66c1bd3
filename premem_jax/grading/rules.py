"""The two rule sets for finding an answer in a text, by name. `reference.py` defines their meaning in plain Python."""

from typing import NamedTuple


class Phrase(NamedTuple):
    """Words before an answer: which occurrence counts, what is trimmed, and whether a box in the answer is opened."""

    text: bytes
    first: bool = False
    trim: bool = True
    unbox: bool = False


class Rules(NamedTuple):
    """Where an answer is: in a box, else after the first phrase of the list that occurs; `drop` is deleted from it."""

    boxed: bool
    phrases: tuple[Phrase, ...]
    drop: bytes = b""


BOXES = (b"\\boxed", b"\\fbox")  # in order of preference
TRIMMED = b" \t\n\r\v\f:$"

# Source: released code of Kang et al. (arXiv 2411.07681); the MATH box is that of Hendrycks et al. (arXiv 2103.03874).
GSM8K = Rules(False, (Phrase(b"The answer is: ", unbox=True), Phrase(b"#### ", first=True, trim=False)), drop=b",")
MATH = Rules(
    True,
    (
        Phrase(b"FINAL ANSWER"),
        Phrase(b"answer is"),
        Phrase(b"ANSWER"),
        Phrase(b"Final Answer"),
        Phrase(b"is:"),
        Phrase(b"Answer"),
        Phrase(b"answer"),
    ),
)
RULES = {"gsm8k": GSM8K, "math": MATH}


def rules_of(rules: str | Rules) -> Rules:
    """The rule set of that name, or the one given; raises ValueError for an unknown name or an empty phrase."""
    if isinstance(rules, str):
        if rules not in RULES:
            raise ValueError(f"no grading rules {rules!r}; there are {', '.join(RULES)}")
        return RULES[rules]
    if not all(phrase.text for phrase in rules.phrases):
        raise ValueError("a phrase of the grading rules is empty; give the bytes that stand before an answer")
    return rules
