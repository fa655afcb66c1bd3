"""Learning dynamics of LLM finetuning.

  python -m premem_jax.main --config=configs/quickstart.py
  python -m premem_jax.main --config=configs/gsm8k_tiny.py:examples=512 --config.data.path=DIR --workdir=runs/mine

--config=FILE[:key=value,...]  what to run; the file's first lines say what it does and what to expect.
--config.KEY=VALUE             changes one setting of it, such as --config.train.learning_rate=1e-3.
--workdir=DIR                  where results go and where a killed run continues (default: a folder under runs/); may be
                               gs://BUCKET/FOLDER.
--config=FILE --help           every key of that config: its value, and what it is.

Installed, the program is also called `premem`, and has the configs with it: they are found from any folder.
"""

import importlib
import os
import signal
import sys
import textwrap
import traceback
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from premem_jax import keys, recipes
from premem_jax.errors import Stopped, UserError, explain
from premem_jax.experiments import ELSEWHERE, POLLING, SEVERAL
from premem_jax.running import environment, storage
from premem_jax.running.workdir import default_workdir, fault_of_a_place

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, configs/NAME.py[:key=value,...].", lock_config=True
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Whether to join other processes: where the environment says so, or must.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", os.environ.get("PREMEM_COORDINATOR"), "host:port of process 0 (PREMEM_COORDINATOR)."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are (PREMEM_PROCESSES).")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is (PREMEM_PROCESS).")
JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", None, "How long to wait for all processes to be there (PREMEM_JOIN_SECONDS; 300 by default)."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
HELP = ("--help", "-help", "-h")


def main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings are given as --config.key=value")
    if CONFIG.value is None:
        raise UserError("--config is missing; try --config=configs/quickstart.py, or --help")
    keys.check(CONFIG.value)
    experiment = CONFIG.value.experiment
    flag = flags.FLAGS["config"]
    folder = storage.path(WORKDIR.value or default_workdir(flag.config_filename, flag.override_values))
    environment.check()
    from premem_jax.running import (  # JAX is imported only now, so that --help and mistakes answer at once
        processes,
        runtime,
    )

    CONFIG.value.cache = str(storage.path(CONFIG.value.cache or folder.parent / "cache"))
    runtime.prepare(CONFIG.value.cache)
    if experiment in SEVERAL:
        processes.start(
            DISTRIBUTED.value,
            COORDINATOR.value,
            environment.whole("PREMEM_PROCESSES", NUM_PROCESSES.value),
            environment.whole("PREMEM_PROCESS", PROCESS_ID.value),
            environment.whole("PREMEM_JOIN_SECONDS", JOIN_SECONDS.value, 300),
        )
    if experiment not in ELSEWHERE:
        runtime.require_devices()
    module = importlib.import_module(f"premem_jax.experiments.{experiment}")
    with processes.stoppable(polls=experiment in POLLING):
        module.run(CONFIG.value, folder)


def parse(argv):
    """absl's parser; its errors and those of a config file become UserErrors."""
    recipes.make_importable()
    wanted = [argument for argument in argv if argument not in HELP]
    try:
        rest = flags.FLAGS(recipes.resolve(wanted))
        getattr(CONFIG.value, "experiment", None)  # config_flags tells of a missing file only on first use
    except SystemExit:
        sys.exit(0)  # --helpfull, after which absl exits with 1
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error)) from error
    if wanted != argv:
        print(explained(CONFIG.value) if CONFIG.value is not None else usage())
        sys.exit(0)
    return rest


def usage() -> str:
    """What the program is, its flags, and the configs that come with it."""
    ours = (CONFIG, WORKDIR, DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, JOIN_SECONDS)
    told = [f"  --{flag.name}: {flags.FLAGS[flag.name].help}" for flag in ours]
    found = [f"  configs/{name}\n      {title}" for name, title in recipes.titles().items()]
    return "\n".join([__doc__ or "", "Flags:", *told, "", "Configs:", *found])


def explained(config) -> str:
    """What a config does, by its file, and every key with its value and its help line."""
    table = keys.table_of(config)
    file, _, _ = flags.FLAGS["config"].config_filename.partition(":")  # options follow
    lines = [recipes.docstring(file), ""]
    for key, value in keys.leaves(config):
        about = table[key][1] if key in table else "no such key"
        lines.append(f"--config.{key}={textwrap.shorten(str(value), 60)}\n      {about}")
    return "\n".join(lines)


def cli() -> None:
    """Runs the program. Its exit status says whether a restart helps.

    2: a mistake, a full disk or a path that cannot be used, with one message; people must fix it. 75 (EX_TEMPFAIL):
    asked to stop (SIGTERM, SIGINT), with the state saved. Others except 0: a fault.
    """
    signal.signal(signal.SIGTERM, stop)  # of work that has not begun; later, `processes.stoppable` decides
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: no letter ends a run where the locale lacks it
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        leave(f"error: {error}", 2)
    except (Stopped, KeyboardInterrupt):
        progress = sys.modules.get("premem_jax.running.progress")  # without it nothing has begun, alone or with others
        say = getattr(progress, "say", print)
        say("stopped as asked, everything is saved; run the same command again to continue")
        sys.exit(75)
    except Exception as error:
        why = textwrap.shorten(str(error), 250)
        if found := fault_of_a_place(error):
            what, fix = found
            leave(f"error: {what} ({why}); {fix}, and run the same command again to continue", 2)
        processes = sys.modules.get("premem_jax.running.processes")
        if processes and processes.lost_another(error):
            leave(f"error: another process is gone ({why}); start all of them again to continue", 1)
        leave(traceback.format_exc(), 1)


def stop(signum, frame) -> NoReturn:
    """Ends the program as asked."""
    raise Stopped


def leave(message: str, status: int) -> NoReturn:
    """Prints `message` on stderr and exits."""
    print(message, file=sys.stderr, flush=True)
    if processes := sys.modules.get("premem_jax.running.processes"):  # otherwise there is but one
        processes.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
