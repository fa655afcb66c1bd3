"""Verdicts of graders, and hashes of answers. Without JAX, because the analysis of traces imports it."""

import hashlib
from enum import IntEnum


class Verdict(IntEnum):
    """Code of one graded response. The released files of arXiv 2411.07681 use the first three.

    UNDECIDED means that the host must decide. It never reaches a trace.
    """

    CORRECT = 0
    WRONG = 1
    UNPARSED = 2
    UNDECIDED = 3


def answer_hash(answer: bytes | None, verdict: Verdict) -> int:
    """32 bits of a sample's normalised answer, by which a trace tells whether samples agree.

    The lowest bit says whether the answer is correct. A sample without an answer has 0, or 1 where that is correct.
    """
    correct = int(verdict == Verdict.CORRECT)
    if answer is None:
        return correct
    return (int.from_bytes(hashlib.blake2b(answer, digest_size=4).digest(), "little") & ~1 or 2) | correct
