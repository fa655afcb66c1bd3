"""Learning dynamics of DPO on Anthropic-HH, with Llama3-8B or Gemma2-9B, at the settings of Ren & Sutherland.

  python -m premem_jax.main --config=configs/dynamics_hh.py --config.data.path=PAIRS.jsonl --config.model.path=FOLDER

`PAIRS.jsonl` has the rows {chosen, rejected} of hh-rlhf's helpful-base, whole dialogues; 5000 of them are trained on.
For 16 v5e chips or 8 of v6e: `configs/plan.py:task=dynamics_hh,model=llama3_8b` reports memory and cost. Options after
a colon: sft (epochs before), epochs, answers (chosen, or both: the paper's remedy), objective, model.

The settings are those of arXiv 2407.10490 and its released code as far as they are known: learning rate, warm-up,
beta, clipping, lengths and number of pairs. Theirs are models of up to 2.8B parameters, batches of 4, RMSprop, a
constant rate after the warm-up, and long dialogues that are cut; ours are batches of 16, AdamW, its linear decay, and
long dialogues that are left out.
"""

from configs import common
from premem_jax import config


def get_config(arg=None, model="llama3_8b"):
    options = config.parse_arg(arg, sft=6, epochs=4, answers="chosen", objective="dpo", model=model)
    c = config.preference()
    c.compute_dtype = "bfloat16"
    c.model.update(preset=options.model, remat="full", vocab_chunks=8)
    c.data.update(train=5000, heldout=0, test=500, context=512, drop_long=True, bad_pairs="drop", buckets=(256, 512))
    c.train.update(epochs=options.epochs, batch=16, learning_rate=5e-7, warmup_steps=150)
    c.sft.update(epochs=options.sft, answers=options.answers, learning_rate=5e-7, warmup_steps=150)
    c.preference.objective = options.objective
    c.optimizer.update(weight_decay=0.0, clip_norm=10.0)
    c.mesh.update(fsdp=-1, decode_tensor=8)
    at = (0, 0.25, 0.5, *range(1, options.sft + options.epochs))
    c.evals = common.probes("train", at, prompts=496, batch=16)
    c.evals.test_greedy = config.evaluator(
        "greedy_responses", "test", (0, *at[3:]), prompts=128, batch=64, max_new_tokens=256
    )
    c.influence.update(every=400, prompts=16, draws=0)
    c.checkpoint.every = 400
    return c
