"""Thirteen finetunes of Llama3-8B on GSM8K, a group of Kang et al. (arXiv 2411.07681), section 4, and their analysis.

  python -m premem_jax.main --config=configs/sweep_llama3_8b_gsm8k.py --config.model.path=HF_FOLDER

For the chips of `configs/llama3_8b_gsm8k.py`; finished runs are kept, so a killed sweep continues.
"""

from configs import common, llama3_8b_gsm8k
from premem_jax.config import parse_arg


def get_config(arg=None):
    parse_arg(arg)
    base = llama3_8b_gsm8k.get_config("epochs=12")  # evaluated after every epoch that a run has
    full = [(rate, epochs) for rate in (2e-4, 5e-5, 5e-7) for epochs in (1, 3, 6)]
    parts = [(2e-5, 6, "half"), (2e-5, 12, "quarter")]
    parts += [(2e-5, 3, "full"), (2e-5, 6, "full")]
    return common.paper_sweep(base, full, parts)
