"""What a grader can say of a sampled answer; no JAX here, since analysis reads traces without it."""

from enum import IntEnum


class Verdict(IntEnum):
    """Code of one graded response; source: the files of arXiv 2411.07681 use the first three.

    UNDECIDED is the device's way to ask the host. It never reaches a trace.
    """

    CORRECT = 0
    WRONG = 1
    UNPARSED = 2
    UNDECIDED = 3
