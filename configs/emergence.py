"""Where will few-shot ability appear? A forecast from models finetuned on growing amounts of data, in under a minute.

  python -m premem_jax.main --config=configs/emergence.py --config.table=FILE

FILE (JSON lines, CSV or Parquet) has a row for each model, amount of data and subset of it: `loss` (the model's
pretraining loss in nats per token), `amount` (finetuning examples; 0: few-shot) and `accuracy`. docs/emergence.md has
the other columns. --config.truth=FILE names few-shot rows of stronger models, opened once the forecast is written.
"""

from ml_collections import ConfigDict

from premem_jax.config import parse_arg


def get_config(arg=None):
    parse_arg(arg)
    c = ConfigDict()
    c.experiment = "emergence"
    c.seed = 0
    c.cache = ""
    c.table = ""
    c.truth = ""
    c.form = "log_power_law"  # of the paper; power_law is its ablation
    c.shots = 5  # examples in the prompt of the few-shot evaluation
    c.draws = 100  # of the bootstrap over subsets
    return c
