"""Learning dynamics of LLM finetuning.

  python -m premem_jax.main --config=configs/quickstart.py
  python -m premem_jax.main --config=configs/gsm8k_tiny.py:examples=512 --config.data.path=DIR --workdir=runs/mine

--config=FILE[:key=value,...]  what to run; the file's first lines say what it does and what to expect.
--config.KEY=VALUE             changes one setting of it, such as --config.train.learning_rate=1e-3.
--workdir=DIR                  where results go and where a killed run continues (default: a folder under runs/).
"""

import importlib
import sys
import textwrap
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from premem_jax.errors import UserError, explain
from premem_jax.experiments import EXPERIMENTS
from premem_jax.workdir import default_workdir, disk_is_full

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
    if experiment not in EXPERIMENTS:
        raise UserError(f"config.experiment={experiment!r}: there is {', '.join(EXPERIMENTS)}")
    from premem_jax import runtime  # JAX is imported only now, so that --help and mistakes answer at once

    runtime.prepare(CONFIG.value.cache)
    importlib.import_module(f"premem_jax.experiments.{experiment}").run(CONFIG.value, folder)


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
    """Runs the program; a mistake or a full disk is one message and exit status 1."""
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not disk_is_full(error):
            raise
        why = textwrap.shorten(str(error), 250)
        sys.exit(f"error: the disk is full ({why}); free some space and run the same command again to continue")


if __name__ == "__main__":
    cli()
