"""A finetune that takes seconds: a base phase of 12 updates, then 12 updates with checkpoints at 4, 8 and 12."""

from premem_jax import config as defaults


def get_config(arg=None):
    options = defaults.parse_arg(arg, examples=32, epochs=3)
    c = defaults.finetune()
    c.data.update(task="arithmetic", train=options.examples, heldout=64, test=16, context=96)
    c.tokenizer.update(kind="word", vocab_size=512)
    c.model.preset = "llama_tiny"
    c.base.update(steps=12, batch=8, warmup_steps=2)
    c.train.update(epochs=options.epochs, batch=8, learning_rate=1e-3, warmup_steps=2)
    c.log_every = 2
    c.checkpoint.every = 4
    epochs = (0, 1, 1.25, 2.5)  # steps 0, 4 (with a checkpoint), 5 and 10 (without), and the last
    sampling = dict(batch=32, samples=2, max_new_tokens=8, first_round=4, keep_texts=32)
    c.evals = dict(
        train_likelihood=defaults.evaluator("likelihood", "train", epochs, batch=32),
        heldout_likelihood=defaults.evaluator("likelihood", "heldout", epochs, batch=32),
        train_accuracy=defaults.evaluator("accuracy", "train", epochs, **sampling),
        test_accuracy=defaults.evaluator("accuracy", "test", epochs[::2], **sampling),
        distance=defaults.evaluator("distance", "train", epochs[3:]),
    )
    return c
