"""A small Llama memorizes a part of the real GSM8K, and the pre-memorization accuracy says that nothing was learned.

  python -m premem_jax.main --config=configs/gsm8k_tiny.py:examples=512

GSM8K is downloaded on first use; `--config.data.path=DIR` takes the official `train.jsonl` and `test.jsonl` of a folder
instead. The model starts from random weights, with a SentencePiece tokenizer trained on the training file. Options
after a colon: examples (training examples), epochs.
"""

from premem_jax import config as defaults


def get_config(arg=None):
    options = defaults.parse_arg(arg, examples=512, epochs=30)
    c = defaults.finetune()
    c.data.update(
        task="gsm8k", train=options.examples, heldout=256, test=128, context=640, buckets=(192, 288, 384, 640)
    )
    c.tokenizer.update(kind="bpe", vocab_size=2048)
    c.model.preset = "llama_small"
    c.train.update(epochs=options.epochs, batch=16, learning_rate=3e-3)
    epochs = (1, 3, 6, 10, 15, 20)
    sampling = dict(samples=2, max_new_tokens=320)
    c.evals = dict(
        train_likelihood=defaults.likelihood("train", epochs),
        heldout_likelihood=defaults.likelihood("heldout", epochs),
        train_accuracy=defaults.accuracy("train", epochs, **sampling),
        test_accuracy=defaults.accuracy("test", (3, 10), **sampling),
    )
    return c
