"""Progress output of a run: bars, lines, and a table row per evaluation. Only process 0 prints."""

import contextlib
import math
import sys
from collections.abc import Mapping

import jax
from tqdm import tqdm

COLUMNS = {
    "epoch": "epoch",
    "train_nll": "train loss",
    "train_accuracy": "train acc",
    "estimate": "pre-mem acc",
    "test_accuracy": "test acc",
    "fraction_memorized": "memorized",
}
FORMATS = {"epoch": "{:.2f}", "train_nll": "{:.4f}"}

_quiet = False


def bar(total: int, name: str, unit: str, *, initial: int = 0, leave: bool = True) -> tqdm:
    """A progress bar. If stderr is a file, short bars are omitted and long ones write a line now and then."""
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
    """Prints a line on stdout without breaking the bars."""
    if jax.process_index() == 0 and not _quiet:
        tqdm.write(text)


@contextlib.contextmanager
def quiet():
    """During the block nothing is printed, and finished bars vanish: for work inside other work."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


class Table:
    """One line per evaluation, under a header; of values with a standard error, half of the 95 % interval."""

    def __init__(self, columns: Mapping[str, str] = COLUMNS, formats: Mapping[str, str] = FORMATS):
        """`columns`: keys of rows and their titles; `formats` of those that are no percentages.

        The standard error of a value is in its row under `NAME_error`.
        """
        self._columns, self._formats, self._begun = columns, formats, False

    def line(self, row: dict[str, float]) -> None:
        """Prints the values of a row; a dash stands for a missing one."""
        if not self._begun:
            say("  ".join(f"{title:>11}" for title in self._columns.values()))
            self._begun = True
        say("  ".join(f"{self._cell(name, row):>11}" for name in self._columns))

    def _cell(self, name: str, row: Mapping[str, float]) -> str:
        if math.isnan(row[name]):
            return "–"
        error = row.get(f"{name}_error", math.nan)
        around = "" if math.isnan(error) else f" ±{196 * error:.1f}"
        return self._formats.get(name, "{:.1%}").format(row[name]) + around
