"""Finetune on your own questions and answers, and learn from the training rows alone how the model will generalise.

  python -m premem_jax.main --config=configs/finetune.py --config.data.path=FOLDER --config.model.path=HF_FOLDER

FOLDER has `train.jsonl` (or `train.parquet`), and `heldout` and `test` files if there are; without a test file a fifth
of the rows is kept for it. A row is `{question, answer}`, `{problem, solution}` or `{prompt, target}`, with a final
`answer` or not; other fields are named by templates: --config.data.prompt='Q: {ask} A:' --config.data.target=' {say}'.
What grades responses is seen from the targets and said, or named: --config.data.grader=number (choice, boxed, exact,
last_line, gsm8k, math, regex:PATTERN, python:FILE.py:FUNCTION, none).

Where HF_FOLDER has a chat template, it writes prompts and targets; a row may then be a conversation `{messages}`, too.

Without --config.model.path a small Llama starts from random weights, with a tokenizer trained on the rows. The
threshold is read from the likelihood of the test solutions; no sample or answer of theirs is used. Options after the
colon: epochs, batch, lr, samples (to each question at each evaluation), max_new_tokens.
"""

from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, epochs=4, batch=16, lr=2e-5, samples=5, max_new_tokens=256)
    c = config.finetune()
    c.data.update(task="jsonl", drop_long=True)
    c.train.update(epochs=options.epochs, batch=options.batch, learning_rate=options.lr, warmup_steps=10)
    epochs = tuple(range(min(options.epochs, 20) + 1))
    sampling = dict(batch=16, samples=options.samples, max_new_tokens=options.max_new_tokens)
    c.evals = dict(
        train_likelihood=config.evaluator("likelihood", "train", epochs, batch=16),
        test_likelihood=config.evaluator("likelihood", "test", epochs, batch=16),
        train_accuracy=config.evaluator("accuracy", "train", epochs, **sampling),
        test_accuracy=config.evaluator("accuracy", "test", epochs, **sampling),
    )
    c.threshold.split = "test"
    return c
