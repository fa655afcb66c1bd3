"""Llama3-8B on GSM8K: one run of Kang et al. (arXiv 2411.07681), section 4.

  python -m premem_jax.main --config=configs/llama3_8b_gsm8k.py:lr=2e-5,epochs=6 --config.model.path=HF_FOLDER

For 16 v5e chips, or 8 of v6e or v5p; `configs/plan.py:model=llama3_8b,task=gsm8k` reports memory and cost. Options
after the colon are those in which the paper's runs differ: lr (2e-4, 5e-5, 2e-5, 5e-7), epochs (1, 3, 6) and size
(full, half with 6 epochs, quarter with 12). `configs/common.py` says which settings are theirs and which are ours.
"""

from configs import common


def get_config(arg=None, model="llama3_8b", lr=2e-5):
    c = common.paper(arg, model, "gsm8k", lr)
    c.data.update(context=640, buckets=(256, 384, 512, 640))
    c.train.update(batch=128, packed_tokens=(160, 176, 192))
    c.optimizer.weight_decay = 0.01
    c.mesh.update(fsdp=-1, decode_tensor=8)
    scoring = dict(batch=128, packed_tokens=(176,))
    c.evals = common.every_epoch(c.train.epochs, scoring, max_new_tokens=512, top_p=0.95)
    return c
