"""Llama3.2-1B on GSM8K on one GPU of 24 GB, all weights trained; with adapters also larger models.

  python -m premem_jax.main --config=configs/llama3_1b_gpu.py --config.model.path=HF_FOLDER
  python -m premem_jax.main --config=configs/llama3_1b_gpu.py --config.model.path=HF_FOLDER --config.lora.rank=16 \\
      --config.train.learning_rate=2e-4

`configs/plan.py:task=gsm8k_gpu,model=llama3_2_1b,topology=rtx4090:1` reports memory and time; docs/gpu.md has what fits
on other GPUs. The run is that of `configs/llama3_8b_gsm8k.py`, with the same options after the colon, in smaller parts:
4 examples at a time in training, 16 in scoring, 16 prompts in sampling.
"""

from configs import llama3_8b_gsm8k


def get_config(arg=None, model="llama3_2_1b", lr=2e-5):
    c = llama3_8b_gsm8k.get_config(arg, model, lr)
    c.train.update(micro_batches=32, packed_tokens=())  # the attention kernel of GPUs takes no segments
    c.optimizer.mean_dtype = "bfloat16"
    c.mesh.decode_tensor = 1
    for options in c.evals.values():
        options.batch = 16
    c.evals.train_likelihood.packed_tokens = c.evals.test_likelihood.packed_tokens = ()
    return c
