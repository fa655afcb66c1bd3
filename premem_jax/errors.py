"""The exceptions that are meant for people, and what is made of others that people cause."""

import traceback


class UserError(Exception):
    """Something the user can mend: the message names the thing and the mend, and `main` prints it and exits with 2."""


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, a preemption) and can continue: every process raises it at the same poll."""


def explain(error: BaseException) -> str:
    """What is wrong with a flag or a config file, on one line, with the line of that file where it raised."""
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
    """Where in the config file, which `config_flags` loads under a name of its own, `error` was raised."""
    calls = [(f.f_code.co_filename, line, f.f_globals) for f, line in traceback.walk_tb(error.__traceback__)]
    return next((f"{file}:{line}: " for file, line, names in calls[::-1] if names["__name__"] == "config_config"), "")
