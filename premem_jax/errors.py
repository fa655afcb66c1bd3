"""Exceptions with messages for users, and one-line messages for mistakes in flags and config files."""

import traceback

MOST_SHOWN = 2000  # characters of a message at either end; names in files of others may be of any length


class UserError(Exception):
    """A mistake that the user can fix: the message names the thing and the fix; `main` prints it and exits with 2.

    It is one line, whatever the errors of other libraries have, and of limited length.
    """

    def __str__(self):
        text = " ".join(super().__str__().splitlines())
        return text if len(text) <= 2 * MOST_SHOWN else f"{text[:MOST_SHOWN]} … {text[-MOST_SHOWN:]}"


class NonFinite(UserError):
    """A result is NaN or infinite; the message says where, and for which examples."""


class Stopped(BaseException):
    """The run was asked to stop (SIGTERM, a preemption) and can be resumed. All processes raise it at the same poll.

    No `Exception`: where a signal raises it in the middle of work, nobody may take it for an error of that work.
    """


def explain(error: BaseException) -> str:
    """One-line message for an error in a flag or a config file, with the line of the file that raised it."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    error, where = next(((e, line) for e in reversed(chain) if (line := _config_line(e))), (error, ""))
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    lines = str(error.args[0] if isinstance(error, KeyError) else error).strip().splitlines()
    if isinstance(error, OSError):
        return f"--config: {lines[-1].strip()}"  # above it is where config_flags looked
    return where + ("no key " if isinstance(error, KeyError) else "") + "; ".join(lines)


def _config_line(error: BaseException) -> str:
    """The line of the config file that raised `error`; `config_flags` loads that file as module `config_config`."""
    calls = [(f.f_code.co_filename, line, f.f_globals) for f, line in traceback.walk_tb(error.__traceback__)]
    return next((f"{file}:{line}: " for file, line, names in calls[::-1] if names["__name__"] == "config_config"), "")
