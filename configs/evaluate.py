"""How likely does a model find given texts, and what does it answer itself? No training; any Llama or Gemma2 folder.

  python -m premem_jax.main --config=configs/evaluate.py --config.model.path=HF_FOLDER --config.data.path=FILE.jsonl

The file has a row `{prompt, target}` per line, with an `id` or not. `evaluation.jsonl` has of each, in the order of the
file, `id`, `target_nll` (the mean in nats over the target's tokens, the stop marker included) and `target_tokens` (how
many these are). With `:samples=5` it has five `responses` too; with `:samples=5,task=gsm8k` they are graded by the
rules of that task against the `answer` that every row then needs.

Kill it anywhere and run the same command again: it continues, and ends with the same bits. Use
`--config.compute_dtype=float32` for exact comparisons. Options after the colon: samples, task, max_new_tokens.
"""

from premem_jax import config as defaults


def get_config(arg=None):
    options = defaults.parse_arg(arg, samples=0, task="", max_new_tokens=512)
    c = defaults.evaluate()
    c.data.task = options.task
    c.sampling.update(samples=options.samples, max_new_tokens=options.max_new_tokens)
    return c
