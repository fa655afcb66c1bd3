"""Fourteen finetunes of Gemma2-9B on MATH, a group of Kang et al. (arXiv 2411.07681), section 4, and their analysis.

  python -m premem_jax.main --config=configs/sweep_gemma2_9b_math.py --config.model.path=HF_FOLDER

For the chips of `configs/gemma2_9b_math.py`; finished runs are kept, so a killed sweep continues.
"""

from configs import common, gemma2_9b_math
from premem_jax.config import parse_arg


def get_config(arg=None):
    parse_arg(arg)
    base = gemma2_9b_math.get_config("epochs=12")  # evaluated after every epoch that a run has
    full = [(rate, epochs) for rate in (5e-4, 5e-5, 5e-6, 5e-7) for epochs in (1, 3, 6)]
    parts = [(5e-5, 6, "half"), (5e-5, 12, "quarter")]
    return common.paper_sweep(base, full, parts)
