"""Llama3-8B on MATH: one run of the study of Kang et al. (arXiv 2411.07681), section 4.

  python -m premem_jax.main --config=configs/llama3_8b_math.py:lr=2e-5,epochs=6 --config.model.path=HF_FOLDER

For 16 v5e chips, or 8 of v6e or v5p; `configs/plan.py:model=llama3_8b,task=math` says what it takes. Options after the
colon are what the paper's runs differ in: lr (2e-4, 5e-5, 2e-5, 5e-7), epochs (1, 3, 6) and size (full, half with 6
epochs, quarter with 12). `premem_jax.config.paper` tells which settings are theirs and which are ours.
"""

from premem_jax import config as defaults


def get_config(arg=None):
    return defaults.paper("llama3_8b", "math", arg)
