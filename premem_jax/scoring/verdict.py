"""The three things a grader can say of a sampled answer; no JAX here, since analysis reads traces without it."""

from enum import IntEnum


class Verdict(IntEnum):
    """Code of one graded response, as stored in traces; source: the files of arXiv 2411.07681 use the same three."""

    CORRECT = 0
    WRONG = 1
    UNPARSED = 2
