"""Preference training in seconds: 4 updates of supervised finetuning, then 8 of DPO, with checkpoints on the way."""

from configs import common


def get_config(arg=None):
    c = common.arithmetic_pairs()
    c.data.update(train=30, test=16)
    c.base.update(steps=4, batch=8, warmup_steps=2)
    c.sft.update(epochs=1, learning_rate=1e-3, warmup_steps=1)
    c.train.update(epochs=2, batch=8, learning_rate=1e-3, warmup_steps=1, packed_tokens=(128,))
    c.log_every = 1
    c.checkpoint.every = 3
    c.data.buckets = (96,)  # one length, so that each program is compiled once
    c.evals = common.probes("train", (0, 1, 2), prompts=16, batch=16)
    return c
