"""Learning dynamics of LLM finetuning.

  python -m premem_jax.main --config=configs/quickstart.py
  python -m premem_jax.main --config=configs/gsm8k_tiny.py:examples=512 --config.data.path=DIR --workdir=runs/mine

--config=FILE[:key=value,...]  what to run; the file's first lines say what it does and what to expect.
--config.KEY=VALUE             changes one setting of it, such as --config.train.learning_rate=1e-3.
--workdir=DIR                  where results go and where a killed run continues (default: a folder under runs/).
"""

import errno
import importlib
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from premem_jax.errors import UserError
from premem_jax.workdir import default_workdir

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, configs/NAME.py[:key=value,...].", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings are given as --config.key=value")
    if CONFIG.value is None:
        raise UserError("--config is missing; try --config=configs/quickstart.py, or --help")
    flag = flags.FLAGS["config"]
    folder = Path(WORKDIR.value or default_workdir(flag.config_filename, flag.override_values))
    experiment = CONFIG.value.experiment
    from premem_jax import runtime  # JAX is imported only now, so that --help and mistakes answer at once

    runtime.prepare(CONFIG.value.cache)
    importlib.import_module(f"premem_jax.experiments.{experiment}").run(CONFIG.value, folder)


def parse(argv):
    """absl's parser, whose complaints, and those of a config file, are ours."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        raise UserError(str(error)) from error


def cli() -> None:
    """Runs the program; a mistake or a full disk is one message and exit status 1."""
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not disk_is_full(error):
            raise
        sys.exit(f"error: the disk is full ({error}); free some space and run the same command again to continue")


def disk_is_full(error: BaseException | None) -> bool:
    """Whether ENOSPC is behind `error`; Orbax and TensorStore wrap it in errors of their own."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    cli()
