"""A tiny Llama memorizes eight problems of MATH in seconds."""

from premem_jax import config as defaults


def get_config(arg=None):
    c = defaults.finetune()
    c.data.update(task="math", context=128)
    c.tokenizer.update(kind="bpe", vocab_size=400)
    c.model.preset = "llama_tiny"
    c.train.update(epochs=60, batch=8, learning_rate=6e-3, warmup_steps=5)
    c.threshold.update(rule="given", perplexity=1.2)
    sampling = dict(batch=8, samples=2, max_new_tokens=64, temperature=0.5)
    c.evals = dict(
        likelihood=defaults.evaluator("likelihood", "train", (0,), batch=8),
        train=defaults.evaluator("accuracy", "train", (0,), **sampling),
        test=defaults.evaluator("accuracy", "test", (), **sampling),
    )
    return c
