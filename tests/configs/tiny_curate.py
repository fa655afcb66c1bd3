"""One round of two strategies beside as many examples at random, of the finetune of `tiny.py`."""

from configs import curate
from premem_jax import config
from tests.configs import tiny


def get_config(arg=None):
    c = tiny.get_config(arg or "epochs=1")
    c.data.update(task="graded_arithmetic", heldout=0, buckets=(96,))  # of one length, so few programs are compiled
    c.threshold.update(rule="given", perplexity=5.0)
    c.checkpoint.every = 100
    c.base.steps = 0
    for name in ("distance", "heldout_likelihood"):
        del c.evals[name]
    c.evals.train_alone = config.evaluator("likelihood", "train", (), batch=32, alone=True)
    for options in c.evals.values():
        options.epochs = ()
    for name in ("train_accuracy", "test_accuracy"):
        c.evals[name].max_new_tokens = 4  # of an untrained model nothing is correct anyway
    return curate.curation(c, {"oracle": [8], "pre_memorization": [8], "ifd": [8], "iid": [8]}, seeds=1)
