"""What DPO does to every other answer, in a few minutes on two CPU cores: two arms, as a study.

  python -m premem_jax.main --config=configs/dynamics_quickstart.py

A small Llama learns to prefer right to wrong solutions of arithmetic problems, both written by the generator. One arm
is finetuned on the right solutions before (`sft-dpo`), the other on both (`both-dpo`), the remedy of Ren & Sutherland
(arXiv 2407.10490, section 4). The study's page shows how likely responses of every type are. Options after a colon:
pairs, seed.
"""

from configs import common
from premem_jax import config

ARMS = {"sft-dpo": "chosen", "both-dpo": "both"}


def get_config(arg=None):
    options = config.parse_arg(arg, pairs=256, seed=0)
    c = common.arithmetic_pairs()
    c.data.train, c.seed = options.pairs, options.seed
    members = [(name, {"experiment": "preference", "sft.answers": answers}, ()) for name, answers in ARMS.items()]
    return config.study("dynamics", c, members)
