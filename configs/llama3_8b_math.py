"""Llama3-8B on MATH: one run of Kang et al. (arXiv 2411.07681), section 4.

  python -m premem_jax.main --config=configs/llama3_8b_math.py:lr=2e-5,epochs=6 --config.model.path=HF_FOLDER

For 16 v5e chips, or 8 of v6e or v5p; `configs/plan.py:model=llama3_8b,task=math` reports memory and cost. Options after
the colon are those in which the paper's runs differ: lr (2e-4, 5e-5, 2e-5, 5e-7), epochs (1, 3, 6) and size (full, half
with 6 epochs, quarter with 12). `configs/common.py` says which settings are theirs and which are ours.
"""

from configs import common


def get_config(arg=None, model="llama3_8b", lr=2e-5):
    c = common.paper(arg, model, "math", lr)
    # Theirs are cut at 1,024 tokens. A cut solution has no answer, so the 1 % that is longer is left out.
    c.data.update(context=1024, buckets=(256, 512, 768, 1024), drop_long=True)
    c.train.update(batch=24, packed_tokens=(256, 290, 340, 420))
    c.optimizer.weight_decay = 0.0
    c.mesh.update(fsdp=8, tensor=-1, decode_tensor=8)
    c.evals = common.every_epoch(c.train.epochs, dict(packed_tokens=(288,)), max_new_tokens=1024, top_p=1.0)
    return c
