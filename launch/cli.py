"""Shared code of the launchers: parser, exit status, and running or printing of commands."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from premem_jax.errors import UserError, explain
from premem_jax.members import ALL, members_of

# Exit statuses of the program and of the launchers.
CANNOT_MEND = 2  # a mistake: starting again would not help
PREEMPTED = 75  # EX_TEMPFAIL: stopped with its state saved, and to be started again


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows `description`, a module's docstring, as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_rest(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds `rest`, the arguments after `--`."""
    parser.add_argument("rest", nargs="*", metavar="-- ARGUMENT", help=help)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Exits with the result of `main` on the command line; a mistake is one message and exit status 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(CANNOT_MEND)


def send(commands: list[list[str]], dry_run: bool, stdin: str | None = None) -> None:
    """Runs the commands in turn or, in a dry run, prints them as shell commands.

    Args:
      stdin: input of each command; a dry run prints only this, so that it can be piped to the command.

    Raises:
      UserError: a command is not installed or failed.
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
    """A name that Kubernetes, Compute Engine and Vertex all accept, for argparse's `type`."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise argparse.ArgumentTypeError(
            f"{name!r}: write at most 40 of a-z, 0-9 and -, with a letter first and no - at the end"
        )
    return name


def warn_about_tag(image: str) -> None:
    """Warns of an image without a digest: its tag may move before the next restart."""
    if not re.search(r"@sha256:[0-9a-f]{64}$", image):
        print(
            f"warning: --image={image} has no digest, so a restart may run another program; "
            "docker buildx imagetools inspect IMAGE prints it, to be written as NAME@sha256:...",
            file=sys.stderr,
        )


def members(names: str, rest: list[str]) -> dict[str, list[str]]:
    """The members of a study to launch separately: suffix for the launch's name → arguments that choose the member.

    The suffix is the member's index, because names of members may be long and have dots.

    Args:
      names: members separated by commas, or `all`.
      rest: arguments of the program, whose config names the members.

    Raises:
      UserError: the config cannot be read or is not of a study, or an unknown member.
    """
    values, arguments = flags.FlagValues(), ["launch", *(each for each in rest if each.startswith("--config"))]
    config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True, sys_argv=arguments)
    try:
        values(arguments)
        config = values.config
        study = config is not None and "study" in config  # a missing file is told of on first use
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error)) from error
    if not study:
        raise UserError("--members is for a study, and the config of --config=FILE is none")
    there = list(members_of(config))
    wanted = there if names == ALL else names.split(",")
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"--members: {unknown[0]!r} is no member (there are: {', '.join(there)})")
    return {str(there.index(name)): [*rest, f"--config.study.member={name}"] for name in wanted}


def add_members(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that launches the members of a study separately."""
    parser.add_argument("--members", metavar="A,B,...", help="of a study: one launch for each of these, or for all")


def program_arguments(rest: list[str], several: bool) -> list[str]:
    """The arguments of `premem_jax.main` on machines that may be preempted.

    Args:
      several: whether there are other processes, for which each must wait: they share the folder.

    Raises:
      UserError: no config, or a workdir that is lost with the machine.
    """
    if not any(argument.startswith("--config=") for argument in rest):
        raise UserError("no --config=FILE among the arguments of the program, which stand behind --")
    if not any(re.match(r"--workdir=gs://[^/]+/.", argument) for argument in rest):
        raise UserError(
            "the program needs --workdir=gs://BUCKET/FOLDER; a folder on a machine is gone with the machine"
        )
    return [*rest, "--distributed=on"] if several else rest
