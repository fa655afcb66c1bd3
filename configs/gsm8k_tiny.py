"""A small Llama memorizes a part of the real GSM8K, and the pre-memorization accuracy says that nothing was learned.

  python -m premem_jax.main --config=configs/gsm8k_tiny.py:examples=512

GSM8K is downloaded on first use; `--config.data.path=DIR` takes the official `train.jsonl` and `test.jsonl` of a folder
instead. The model starts from random weights, with a SentencePiece tokenizer trained on the training file. Options
after a colon: examples (training examples), epochs.
"""

from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, examples=512, epochs=25)
    c = config.finetune()
    c.data.update(task="gsm8k", train=options.examples, heldout=128, test=128, context=640)
    c.data.buckets = (160, 224, 320, 448, 640)
    c.tokenizer.update(kind="bpe", vocab_size=2048)
    c.model.preset = "llama_small"
    c.train.update(epochs=options.epochs, batch=8, length_window=8, learning_rate=4e-3)
    c.optimizer.update(b2=0.98, weight_decay=0.0, clip_norm=1.0)
    epochs = (3, 8)
    sampling = dict(batch=128, samples=1, max_new_tokens=320, top_p=0.95)
    c.evals = dict(
        train_likelihood=config.evaluator("likelihood", "train", epochs),
        heldout_likelihood=config.evaluator("likelihood", "heldout", epochs),
        train_accuracy=config.evaluator("accuracy", "train", epochs, drafted=True, **sampling),
        test_accuracy=config.evaluator("accuracy", "test", (8,), **sampling),
    )
    return c
