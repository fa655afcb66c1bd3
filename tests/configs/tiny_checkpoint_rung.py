"""A checkpoint on a ladder in seconds: its loss on a text, and finetunes of four updates."""

from premem_jax import config


def get_config(arg=None):
    c = config.checkpoint_rung()
    c.model.path = "model"
    c.data.update(task="choice", path="questions.jsonl", heldout=16, test=24, context=96)
    c.train.update(batch=8, learning_rate=1e-2, warmup_steps=1)
    c.evals.answers.batch = 16
    c.rung.texts = "text.txt"
    c.finetune.update(amounts=(8, 24), steps=4, looks=2)
    c.evaluation.shots = 1
    return c
