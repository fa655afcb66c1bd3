"""Fourteen finetunes of Gemma2-9B on MATH: a whole group of Kang et al. (arXiv 2411.07681), section 4, and its study.

  python -m premem_jax.main --config=configs/sweep_gemma2_9b_math.py --config.model.path=HF_FOLDER

For the chips of `configs/gemma2_9b_math.py`; finished runs stay, so it may be killed and continued anywhere.
"""

from premem_jax import config as defaults


def get_config(arg=None):
    return defaults.paper_sweep("gemma2_9b", "math", arg)
