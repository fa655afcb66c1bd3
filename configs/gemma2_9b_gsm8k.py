"""Gemma2-9B on GSM8K: one run of Kang et al. (arXiv 2411.07681), section 4.

  python -m premem_jax.main --config=configs/gemma2_9b_gsm8k.py:lr=5e-5,epochs=6 --config.model.path=HF_FOLDER

For 16 v5e chips, or 8 of v6e or v5p; `configs/plan.py:model=gemma2_9b,task=gsm8k` reports memory and cost. Options
after the colon are those in which the paper's runs differ: lr (5e-4, 5e-5, 5e-6, 5e-7), epochs (1, 3, 6) and size
(full, half with 6 epochs, quarter with 12). `configs/common.py` says which settings are theirs and which are ours.
"""

from configs import llama3_8b_gsm8k


def get_config(arg=None):
    c = llama3_8b_gsm8k.get_config(arg, model="gemma2_9b", lr=5e-5)
    c.train.packed_tokens = (192, 208, 224)  # digits are tokens of their own
    c.evals.train_likelihood.packed_tokens = c.evals.test_likelihood.packed_tokens = (192, 208)
    return c
