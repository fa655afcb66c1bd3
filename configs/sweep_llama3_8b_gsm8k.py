"""Thirteen finetunes of Llama3-8B on GSM8K: a whole group of Kang et al. (arXiv 2411.07681), section 4, and its study.

  python -m premem_jax.main --config=configs/sweep_llama3_8b_gsm8k.py --config.model.path=HF_FOLDER

For the chips of `configs/llama3_8b_gsm8k.py`; finished runs stay, so it may be killed and continued anywhere.
"""

from premem_jax import config as defaults


def get_config(arg=None):
    return defaults.paper_sweep("llama3_8b", "gsm8k", arg)
