"""The grading rules in plain Python on bytes: the specification that the device kernel is held against.

1. The first occurrence of the marker counts; the span runs from behind it to the next newline or the end.
2. Spaces, tabs, carriage returns and commas are dropped, then one leading `+`. Nothing else is: `-`, leading zeros,
   `$` and `.0` are significant, and there is no numeric tolerance.
3. Unparsed: no marker, or no ASCII digit among the kept bytes. Correct: the kept bytes equal those of the reference
   answer, which rule 2 has also been applied to. Wrong: everything else.
"""

from premem_jax.scoring.verdict import Verdict

MARKER = b"####"


def find_span(response: bytes, marker: bytes = MARKER) -> bytes | None:
    """Bytes behind the first `marker` up to the next newline or the end; None where there is no marker.

    Raises ValueError for an empty marker. Source: answer format of GSM8K, arXiv 2110.14168.
    """
    if not marker:
        raise ValueError("the answer marker is empty; give the bytes that stand before an answer, such as b'####'")
    _, found, rest = response.partition(marker)
    return rest.split(b"\n", 1)[0] if found else None


def normalise(answer: bytes) -> bytes:
    """Drops spaces, tabs, carriage returns and commas, then one leading `+` (rule 2 of this module)."""
    return answer.translate(None, delete=b" \t\r,").removeprefix(b"+")


def grade_bytes(response: bytes, answer: bytes, marker: bytes = MARKER) -> Verdict:
    """Verdict of one response against one reference answer; raises ValueError for an empty marker."""
    span = find_span(response, marker)
    if span is None:
        return Verdict.UNPARSED
    kept = normalise(span)
    if not any(byte in b"0123456789" for byte in kept):
        return Verdict.UNPARSED
    return Verdict.CORRECT if kept == normalise(answer) else Verdict.WRONG
