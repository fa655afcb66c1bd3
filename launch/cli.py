"""What the launchers share: their parser, how they end, and how they show and run other programs."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

from premem_jax.errors import UserError

# Exit statuses of the program, and of these.
CANNOT_MEND = 2  # a mistake: starting again would not help
PREEMPTED = 75  # EX_TEMPFAIL: stopped with its state saved, and to be started again


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows `description`, a module's docstring, as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_rest(parser: argparse.ArgumentParser, help: str) -> None:
    """Makes what follows `--` the parsed `rest`."""
    parser.add_argument("rest", nargs="*", metavar="-- ARGUMENT", help=help)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Ends the process with what `main` returns for the command line; a mistake is one message and exit status 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(CANNOT_MEND)


def send(commands: list[list[str]], dry_run: bool, stdin: str | None = None) -> None:
    """Runs the commands one after the other, or, for a dry run, prints them as one would type them.

    Args:
      stdin: what each of them reads; a dry run prints it alone, so that it can be piped to the command.

    Raises:
      UserError: a command is not installed, or ended badly.
    """
    for command in commands:
        shown = shlex.join(command)
        if dry_run:
            print(shown if stdin is None else stdin.rstrip("\n"))
            continue
        print(shown, file=sys.stderr)
        try:
            done = subprocess.run(command, input=stdin, text=True)
        except FileNotFoundError as error:
            raise UserError(f"{command[0]} is not installed; --dry_run prints what it would be given") from error
        if done.returncode:
            raise UserError(f"{command[0]} ended with {done.returncode}; its message is above")


def check_name(name: str) -> str:
    """A name that Kubernetes, Compute Engine and Vertex all take, for argparse's `type`."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise argparse.ArgumentTypeError(
            f"{name!r}: write at most 40 of a-z, 0-9 and -, with a letter first and no - at the end"
        )
    return name


def warn_about_tag(image: str) -> None:
    """Warns of an image without a digest: its tag may mean something else by the next restart."""
    if not re.search(r"@sha256:[0-9a-f]{64}$", image):
        print(
            f"warning: --image={image} has no digest, so a restart may run another program; "
            "docker buildx imagetools inspect IMAGE prints it, to be written as NAME@sha256:...",
            file=sys.stderr,
        )


def program_arguments(rest: list[str], several: bool) -> list[str]:
    """The arguments of `premem_jax.main` on machines that may be taken away.

    Args:
      several: whether there are other processes, without which none may begin: they share the folder.

    Raises:
      UserError: no config, or a workdir that would be gone with the machine.
    """
    if not any(argument.startswith("--config=") for argument in rest):
        raise UserError("no --config=FILE among the arguments of the program, which stand behind --")
    if not any(re.match(r"--workdir=gs://[^/]+/.", argument) for argument in rest):
        raise UserError(
            "the program needs --workdir=gs://BUCKET/FOLDER; a folder on a machine is gone with the machine"
        )
    return [*rest, "--distributed=on"] if several else rest
