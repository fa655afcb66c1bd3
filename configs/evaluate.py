"""Likelihood of given texts and sampled responses, without training, for any Llama or Gemma2 folder or run.

  python -m premem_jax.main --config=configs/evaluate.py --config.model.path=HF_FOLDER --config.data.path=FILE.jsonl

The folder may also be a run's, or `RUN/checkpoints/STEP`. The file has a row `{prompt, target}` per line; `id` is
optional. `evaluation.jsonl` has a row for each, in file order: `id`, `target_nll` (mean over the target's tokens in
nats, stop marker included) and `target_tokens` (their number). With `:samples=5` it also has five `responses`. With
`:samples=5,task=gsm8k` they are graded by the rules of that task against the row's `answer`, which is then required.

Kill it anywhere and run the same command again: it continues, and ends with the same bits. Use
`--config.compute_dtype=float32` for exact comparisons. Options after the colon: samples, task, max_new_tokens.
"""

from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, samples=0, task="", max_new_tokens=512)
    c = config.evaluate()
    c.data.task = options.task
    c.sampling.update(samples=options.samples, max_new_tokens=options.max_new_tokens)
    return c
