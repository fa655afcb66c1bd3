"""Learning dynamics of DPO on UltraFeedback, with Llama3-8B or Gemma2-9B, at the settings of Ren & Sutherland.

  python -m premem_jax.main --config=configs/dynamics_ultrafeedback.py --config.data.path=PAIRS.jsonl \
--config.model.path=FOLDER

`PAIRS.jsonl` has rows {prompt, chosen, rejected} made of ultrafeedback_binarized's train_prefs: the prompt as
"Human: {prompt}\\nAssistant:", and the last message of each answer behind a space. Everything else is as in
`configs/dynamics_hh.py`, but responses are probed half as often, as in the released code.
"""

from configs import dynamics_hh


def get_config(arg=None, model="llama3_8b"):
    c = dynamics_hh.get_config(arg, model)
    last = c.sft.epochs + c.train.epochs
    for evaluator in c.evals.values():
        evaluator.epochs = (0, *range(1, last))
    return c
