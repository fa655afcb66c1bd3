"""A finetune small enough to run many times: a base phase of 6 steps, then 12 updates with evaluations in between."""

from premem_jax import config as defaults


def get_config(arg=None):
    options = defaults.parse_arg(arg, examples=32, epochs=3)
    c = defaults.finetune()
    c.data.update(task="arithmetic", train=options.examples, heldout=64, test=16, context=96)
    c.tokenizer.update(kind="word", vocab_size=512)
    c.model.preset = "llama_tiny"
    c.base.update(steps=6, batch=8, warmup_steps=2)
    c.train.update(epochs=options.epochs, batch=8, learning_rate=1e-3, warmup_steps=2)
    c.log_every = 2
    c.checkpoint.update(every=3, keep=2)
    epochs = (0, 0.75, 1.25, 2)  # steps 0, 3 (with a checkpoint), 5 and 8 (without), and 12, the last
    c.evals = dict(
        train_likelihood=defaults.likelihood("train", epochs, batch=32),
        heldout_likelihood=defaults.likelihood("heldout", epochs, batch=32),
        train_accuracy=defaults.accuracy("train", epochs, batch=32, samples=2, max_new_tokens=8),
        test_accuracy=defaults.accuracy("test", epochs[::2], batch=32, samples=2, max_new_tokens=8),
    )
    return c
