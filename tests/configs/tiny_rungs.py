"""One size of a ladder in seconds: 12 updates with three rungs, and finetunes of four updates."""

from premem_jax import config as defaults


def get_config(arg=None):
    c = defaults.rungs()
    c.world.update(entities=32, relations=4, values=8, asked=0.05)
    c.model.update(width=16, layers=1)
    c.pretrain.update(steps=12, batch=8, learning_rate=1e-2, warmup_steps=2, first=3, rungs=3, loss_texts=16)
    c.finetune.update(amounts=(8, 16, 64), steps=4, batch=8, learning_rate=1e-2, looks=2)
    c.evaluation.update(shots=2, dev=16, questions=48, batch=16)
    return c
