"""Pre-memorization accuracy in a few minutes on two CPU cores.

  python -m premem_jax.main --config=configs/quickstart.py

A 0.35 M parameter Llama is trained on arithmetic texts (cached for the next run), then finetuned until it has memorized
its training problems. Options after a colon: examples (training problems), epochs.
"""

from premem_jax import config as defaults


def get_config(arg=None):
    options = defaults.parse_arg(arg, examples=256, epochs=16)
    c = defaults.finetune()
    c.data.update(task="arithmetic", train=options.examples, heldout=256, test=192, context=96, buckets=(72, 88))
    c.tokenizer.update(kind="word", vocab_size=512)
    c.model.preset = "llama_tiny"
    c.base.update(steps=600, learning_rate=6e-3)
    c.train.update(epochs=options.epochs, batch=16, learning_rate=3e-3, warmup_steps=10)
    c.optimizer.update(b2=0.98, weight_decay=0.0, clip_norm=1.0)
    early = (0, 1, 2, 4, 7, 11)
    sampling = dict(batch=128, max_new_tokens=44)
    c.evals = dict(
        train_likelihood=defaults.likelihood("train", early),
        heldout_likelihood=defaults.likelihood("heldout", early),
        train_accuracy=defaults.accuracy("train", early, samples=10, **sampling),
        test_accuracy=defaults.accuracy("test", early, samples=5, **sampling),
    )
    return c
