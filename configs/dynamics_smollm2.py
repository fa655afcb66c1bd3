"""Learning dynamics of DPO in a really pretrained model, on two CPU cores: SmolLM2-135M-Instruct and Anthropic-HH.

  python -m benchmarks.smollm2 smollm2
  python -m premem_jax.main --config=configs/dynamics_smollm2.py --config.data.path=probe_train.jsonl \
--config.model.path=smollm2

`probe_train.jsonl` is the file of that name that Ren & Sutherland (arXiv 2407.10490) released: prompts with a chosen
and a rejected response, and ten more of each, written by models or drawn from other rows. One arm is finetuned on the
chosen responses before (`sft-dpo`), the other on both (`both-dpo`, the remedy of section 4). An arm is meant to take
half an hour and has not been run to its end yet (`--config.study.member=NAME` makes one). Options after a colon: pairs
(a third is too long and left out; every two others make an update in each phase), sft (learning rate of the first
phase), dpo (of the second), probed (prompts), seed.

Learning rates are higher than the paper's 5e-7, because there are a hundred updates and not thousands.
"""

from configs.dynamics_quickstart import ARMS
from premem_jax import config

# Fields of the released file; `chosen_selfr` is not scored, as in the released code.
RESPONSES = (
    *("chosen_initial", "chosen_gptsemantic", "chosen_gptformat", "reject_gptsemantic", "reject_gptformat"),
    *("irr_train", "irr_test", "irr_hum", "random_permute", "random_nonhum"),
)


def get_config(arg=None):
    options = config.parse_arg(arg, pairs=280, sft=1e-5, dpo=2e-6, probed=16, seed=0)
    c = config.preference()
    c.seed = options.seed
    c.data.update(train=options.pairs, test=32, context=256, drop_long=True, bad_pairs="drop", buckets=(128, 192, 256))
    c.train.update(epochs=1, batch=2, micro_batches=2, learning_rate=options.dpo, warmup_steps=10)
    c.sft.update(epochs=1, learning_rate=options.sft, warmup_steps=10)
    c.optimizer.update(weight_decay=0.0, clip_norm=10.0)
    at, probed = (0, 1, 1.33, 1.67), dict(prompts=options.probed, batch=8)  # and at the end
    c.evals = {
        f"train_{name}": config.evaluator("probe", "train", at, response=name, **probed)
        for name in ("chosen", "rejected", *RESPONSES)
    }
    c.evals.train_squeezing = config.evaluator("squeezing", "train", at, **probed)
    greedy = dict(prompts=options.probed, batch=8, max_new_tokens=48)
    c.evals.test_greedy = config.evaluator("greedy_responses", "test", (0, 1), **greedy)
    c.influence.update(every=max(options.pairs // 4, 2), prompts=8)  # the second update, and one in the second half
    c.checkpoint.every = 50
    members = [(name, {"experiment": "preference", "sft.answers": answers}, ()) for name, answers in ARMS.items()]
    return config.study("dynamics", c, members)
