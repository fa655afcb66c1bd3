"""The launchers as commands, called in this process: exit status and output are those of a launch of their own."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from launch import cli

ROOT = Path(__file__).parents[2]


def call(module: ModuleType, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m launch.NAME ARGUMENTS` from the checkout, without what other programs that it starts print."""
    command, said, erred = [module.__name__, *arguments], io.StringIO(), io.StringIO()
    kept, sys.argv = sys.argv, command
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(said), contextlib.redirect_stderr(erred):
            cli.run(module.main)
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = kept
    return subprocess.CompletedProcess(command, status, said.getvalue(), erred.getvalue())
