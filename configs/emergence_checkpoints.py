"""Foretell where few-shot ability appears, from your own checkpoints: finetune each on growing amounts of task data.

  python -m premem_jax.main --config=configs/emergence_checkpoints.py:folder=DIR --config.data.path=FILE

DIR holds Hugging Face folders and `losses.csv`: a row for each, with its name, its pretraining loss in nats per token
on one held-out text, perhaps its FLOPs, and 1 under `strong` for a model that is to be predicted. Without that file the
loss is measured on DIR/text.txt. FILE is multiple choice, of MMLU or CommonsenseQA (JSON lines) or CoLA (.tsv). Every
setting of a finetune can be changed: adapters (--config.lora.rank=8), mesh, amounts, learning rate. A task with other
answers takes a config of its own, as configs/emergence_openllama.py is. docs/emergence.md says more.
"""

from premem_jax import config
from premem_jax.checkpoint_list import models_in


def get_config(arg=None):
    options = config.parse_arg(arg, folder="")
    c = config.checkpoint_rung()
    c.data.update(task="choice", heldout=128, test=256)
    return config.ladder(c, *models_in(options.folder))
