"""What people see while a run goes: bars, lines, and a table line per evaluation. Only process 0 talks."""

import contextlib
import math
import sys

import jax
from tqdm import tqdm

COLUMNS = {
    "epoch": "epoch",
    "train_nll": "train loss",
    "train_accuracy": "train acc",
    "pre_memorization_accuracy": "pre-mem acc",
    "test_accuracy": "test acc",
    "fraction_memorized": "memorized",
}

_quiet = False


def bar(total: int, name: str, unit: str, *, initial: int = 0, leave: bool = True) -> tqdm:
    """A progress bar; where stderr is a file, short-lived bars are left out and long ones write a line now and then."""
    terminal, leave = sys.stderr.isatty(), leave and not _quiet
    hidden = jax.process_index() > 0 or not (terminal or leave)
    return tqdm(
        total=total,
        desc=name,
        unit=unit,
        initial=initial,
        leave=leave,
        disable=hidden,
        mininterval=0.5 if terminal else 15,
        maxinterval=0.5 if terminal else 15,
        dynamic_ncols=terminal,
    )


def say(text: str) -> None:
    """A line on stdout that does not break the bars."""
    if jax.process_index() == 0 and not _quiet:
        tqdm.write(text)


@contextlib.contextmanager
def quiet():
    """While it lasts nothing is said, and bars vanish when they are done: for work that is a part of other work."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


class Table:
    """One line per evaluation, under a header."""

    def __init__(self):
        self._begun = False

    def line(self, row: dict[str, float]) -> None:
        """Shows the values of `COLUMNS`; one that was not measured is a dash."""
        if not self._begun:
            say("  ".join(f"{title:>11}" for title in COLUMNS.values()))
            self._begun = True
        formats = {"epoch": "{:.2f}", "train_nll": "{:.4f}"}
        cells = ["–" if math.isnan(row[name]) else formats.get(name, "{:.1%}").format(row[name]) for name in COLUMNS]
        say("  ".join(f"{cell:>11}" for cell in cells))
