"""DPO on your own pairs: a JSON Lines file of rows {prompt, chosen, rejected}, on a model of your own.

  python -m premem_jax.main --config=configs/dpo.py --config.data.path=pairs.jsonl --config.model.path=FOLDER

The folder is one of Hugging Face, Llama3 or Gemma2; the trained model goes to `export/` of the run, in the same form.
A response is joined to its prompt as it is, so it usually begins with a space. Options after a colon: sft (epochs of
supervised finetuning on the chosen responses before), epochs, objective (dpo, ipo, slic, sppo, ascent).
`--config.data.bad_pairs=drop` leaves unfit pairs out instead of refusing them.

The settings are those of Ren & Sutherland (arXiv 2407.10490), as far as they are known, but AdamW takes the place of
RMSprop. Responses of five types to the first 64 prompts are followed, and the likeliest token along the chosen one.
"""

from configs import common
from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, sft=0, epochs=1, objective="dpo")
    c = config.preference()
    c.data.context = 512
    c.train.update(epochs=options.epochs, batch=4, learning_rate=5e-7, warmup_steps=150)
    c.sft.update(epochs=options.sft, learning_rate=5e-7, warmup_steps=150)
    c.preference.objective = options.objective
    c.optimizer.update(weight_decay=0.0, clip_norm=10.0)
    c.evals = common.probes("train", (0, 0.25, 0.5, 1, 2, 3, 4), prompts=64, batch=8)
    c.checkpoint.export = True
    return c
