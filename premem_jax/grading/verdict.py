"""Verdicts of graders. Without JAX, because the analysis of traces imports it."""

from enum import IntEnum


class Verdict(IntEnum):
    """Code of one graded response. The released files of arXiv 2411.07681 use the first three.

    UNDECIDED means that the host must decide. It never reaches a trace.
    """

    CORRECT = 0
    WRONG = 1
    UNPARSED = 2
    UNDECIDED = 3
