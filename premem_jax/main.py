"""Learning dynamics of LLM finetuning.

  python -m premem_jax.main --config=configs/quickstart.py
  python -m premem_jax.main --config=configs/gsm8k_tiny.py:examples=512 --config.data.path=DIR --workdir=runs/mine

--config=FILE[:key=value,...]  what to run; the file's first lines say what it does and what to expect.
--config.KEY=VALUE             changes one setting of it, such as --config.train.learning_rate=1e-3.
--workdir=DIR                  where results go and where a killed run continues (default: a folder under runs/); may be
                               gs://BUCKET/FOLDER.
"""

import contextlib
import importlib
import os
import sys
import textwrap
import traceback
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from premem_jax import storage
from premem_jax.errors import Stopped, UserError, explain
from premem_jax.experiments import EXPERIMENTS, SEVERAL
from premem_jax.workdir import default_workdir, disk_is_full, disk_is_read_only

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
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", os.environ.get("PREMEM_PROCESSES"), "How many processes there are (PREMEM_PROCESSES)."
)
PROCESS_ID = flags.DEFINE_integer("process_id", os.environ.get("PREMEM_PROCESS"), "Which one this is (PREMEM_PROCESS).")
JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds",
    os.environ.get("PREMEM_JOIN_SECONDS", 300),
    "How long to wait for all processes to be there (PREMEM_JOIN_SECONDS).",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings are given as --config.key=value")
    if CONFIG.value is None:
        raise UserError("--config is missing; try --config=configs/quickstart.py, or --help")
    flag = flags.FLAGS["config"]
    folder = storage.path(WORKDIR.value or default_workdir(flag.config_filename, flag.override_values))
    experiment = CONFIG.value.experiment
    if experiment not in EXPERIMENTS:
        raise UserError(f"config.experiment={experiment!r}: there is {', '.join(EXPERIMENTS)}")
    from premem_jax import processes, runtime  # JAX is imported only now, so that --help and mistakes answer at once

    CONFIG.value.cache = str(storage.path(CONFIG.value.cache or folder.parent / "cache"))
    runtime.prepare(CONFIG.value.cache)
    if experiment in SEVERAL:
        where = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
        processes.start(DISTRIBUTED.value, *where, JOIN_SECONDS.value)
    module = importlib.import_module(f"premem_jax.experiments.{experiment}")
    with processes.stoppable() if experiment in SEVERAL else contextlib.nullcontext():
        module.run(CONFIG.value, folder)


def parse(argv):
    """absl's parser, whose complaints, and those of a config file, are ours."""
    try:
        rest = flags.FLAGS(argv)
        getattr(CONFIG.value, "experiment", None)  # config_flags tells of a missing file only on first use
    except SystemExit:
        sys.exit(0)  # --help, after which absl exits with 1
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error)) from error
    return rest


def cli() -> None:
    """Runs the program, and says in its exit status whether running it again helps.

    2: a mistake or a full disk, one message, which people must mend. 75 (EX_TEMPFAIL): it was asked to stop and saved
    its state. Anything else but 0: a fault.
    """
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        leave(f"error: {error}", 2)
    except Stopped:
        progress = importlib.import_module("premem_jax.progress")
        progress.say("stopped as asked, everything is saved; run the same command again to continue")
        sys.exit(75)
    except Exception as error:
        why = textwrap.shorten(str(error), 250)
        if disk_is_full(error):
            leave(f"error: the disk is full ({why}); free some space and run the same command again to continue", 2)
        if disk_is_read_only(error):
            leave(f"error: the disk is read-only ({why}); mend it and run the same command again to continue", 2)
        processes = sys.modules.get("premem_jax.processes")
        if processes and processes.lost_another(error):
            leave(f"error: another process is gone ({why}); start all of them again to continue", 1)
        leave(traceback.format_exc(), 1)


def leave(message: str, status: int) -> NoReturn:
    """Ends with `message` on stderr."""
    print(message, file=sys.stderr, flush=True)
    if processes := sys.modules.get("premem_jax.processes"):  # otherwise there is but one
        processes.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
