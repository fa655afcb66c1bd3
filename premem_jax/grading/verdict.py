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


def answer_hash(answer: bytes | None) -> int:
    """32 bits of a normalised answer, by which a trace tells whether samples agree; 0 stands for no answer alone."""
    return 0 if answer is None else int.from_bytes(hashlib.blake2b(answer, digest_size=4).digest(), "little") or 1
