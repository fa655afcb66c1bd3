"""What finished runs tell about each training example: difficulty, suspect labels, what to train on next.

  python -m premem_jax.main --config=configs/audit.py --config.traces=DIR
  python -m premem_jax.main --config=configs/audit.py:select=hardest,share=0.4 --config.traces=DIR --config.rows=FILE

DIR is as for `configs/analyze.py`: run folders of this program, published runs, or tables from any trainer.
`audit.parquet` in the workdir has a row per run and example, `suspects.parquet` the labels to look at first.

Options after the colon: select (hardest, or a column of audit.parquet: its lowest values, or with a leading - its
highest) and share write a part of the examples to `selected.jsonl` for the next training. Their texts come from the
folders of the runs, or from the rows of FILE (JSON Lines, all rows in the order of their ids, from 0).
"""

from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, select="", share=0.5)
    c = config.audit()
    c.select, c.share = options.select, options.share
    return c
