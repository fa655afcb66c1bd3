"""math-verify, which compares answers as mathematics: beside the rules on stored texts, or as a grader of own rows.

It parses answers with SymPy, which may take hours for one text. So every text has a deadline, and a process that misses
it is killed. Needs `pip install 'premem_jax[verify]'`; source: github.com/huggingface/Math-Verify.
"""

import atexit
import functools
import importlib.util
import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence

from premem_jax.errors import UserError
from premem_jax.grading.verdict import Verdict

PACKAGES = ("math_verify", "pebble")


def require() -> None:
    """Raises UserError if math-verify or its process pool is not installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"math_verify needs {' and '.join(missing)}: pip install -e '.[verify]'")


def math_verify(
    outputs: Sequence[str], answers: Sequence[str], *, deadline: float, told: Callable[[int], object]
) -> list[bool | None]:
    """math-verify's verdict on each output: true, false, or None if it fails or exceeds `deadline` seconds.

    `answers` are final answers in LaTeX. Uses one process per CPU core; `told` is called as texts are done.
    """
    from pebble import ProcessPool

    # Spawned, not forked: a fork of a process that runs JAX may deadlock.
    context = multiprocessing.get_context("spawn")
    said: list[bool | None] = []
    with ProcessPool(multiprocessing.cpu_count(), initializer=_prepare, context=context) as pool:
        results = pool.map(_agrees, outputs, answers, timeout=deadline).result()
        try:
            for _ in outputs:
                said.append(_next(results))
                told(1)
        except BaseException:
            pool.stop()
            raise
    return said


def verdict(output: str, answer: str, deadline: float = 10) -> Verdict:
    """math-verify's verdict on one output. WRONG if it fails or exceeds `deadline` seconds, UNPARSED without answer."""
    try:
        return Verdict(_one().schedule(_compared, (output, answer), timeout=deadline).result())
    except Exception:  # of the deadline, of a process that the system killed, or of SymPy, which raises many kinds
        return Verdict.WRONG


@functools.cache
def _one():
    """A process that compares, until this one ends."""
    from pebble import ProcessPool

    pool = ProcessPool(1, initializer=_prepare, context=multiprocessing.get_context("spawn"))
    atexit.register(pool.stop)
    return pool


def _compared(output: str, answer: str) -> int:
    from math_verify import parse

    if not parse(output, parsing_timeout=None):
        return int(Verdict.UNPARSED)
    return int(Verdict.CORRECT if _agrees(output, answer) else Verdict.WRONG)


def _next(results) -> bool | None:
    try:
        return next(results)
    except StopIteration:
        raise
    except Exception:  # of the deadline, of a process that the system killed, or of SymPy, which raises many kinds
        return None


def _prepare() -> None:
    """Imports math-verify before the first deadline starts, and silences its warning about disabled timeouts.

    Ctrl-C reaches all processes of a terminal, and is for the one that started this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)
    importlib.import_module("math_verify")


def _agrees(output: str, answer: str) -> bool:
    from math_verify import parse, verify

    gold, found = parse(rf"\boxed{{{answer}}}", parsing_timeout=None), parse(output, parsing_timeout=None)
    return verify(gold, found, timeout_seconds=None)
