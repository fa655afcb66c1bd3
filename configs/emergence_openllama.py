"""The ladder of OpenLLaMA checkpoints from which Snell et al. (arXiv 2411.16035) forecast emergence, on GSM8K.

  python -m premem_jax.main --config=configs/emergence_openllama.py:folder=DIR
  python -m premem_jax.main --config=configs/plan.py:task=emergence_openllama,topology=v5e:4x4

DIR has the checkpoints as Hugging Face folders, SIZE-STEP such as 3b-2500, and text.txt, a held-out text. The steps are
those that the author's scripts convert; that the paper fits just these is an inference from its multiples of FLOPs. The
3B models are finetuned, all weights, on growing parts of the training set; 7B and 13B are predicted. OpenLLaMA has
published last checkpoints alone, so DIR has to come from a pretraining of your own. Of the finetunes the paper says
nothing; rate, batch and optimizer are the defaults of the author's trainer, JAXSeq.
"""

from ml_collections import ConfigDict

from premem_jax import config
from premem_jax.config import evaluator

STEPS = (2500, 5000, 7500, 10_000, 50_000, 100_000, 150_000, 200_000, 250_000)
PARAMETERS = {"3b": 3.43e9, "7b": 6.74e9, "13b": 13.02e9}
TOKENS = {"3b": 2**22, "7b": 2**22, "13b": 2**21}  # of a step


def get_config(arg=None):
    options = config.parse_arg(arg, folder="open_llama")
    c = settings(config.checkpoint_rung())
    c.data.heldout = 256
    c.finetune.update(amounts=(112, 225, 450, 900, 1800, 3600, 7200), subsets=2, steps=450, looks=4)
    c.evaluation.shots = 6

    def models(size: str, steps: tuple[int, ...]) -> dict[str, dict]:
        cost = lambda step: 6 * PARAMETERS[size] * TOKENS[size] * step
        path = lambda step: f"{options.folder}/{size}-{step}"
        return {f"{size}-{step}": {"model.path": path(step), "rung.flops": cost(step)} for step in steps}

    c.rung.texts = f"{options.folder}/text.txt"
    return config.ladder(c, models("3b", STEPS), models("7b", STEPS) | models("13b", tuple(2 * s for s in STEPS)))


def finetune(model: str) -> ConfigDict:
    """One of its finetunes, which `configs/plan.py` compiles."""
    c = settings(config.finetune())
    c.model.preset = "open_llama_3b"
    c.threshold.rule = "none"
    return c


def settings(c: ConfigDict) -> ConfigDict:
    """What all finetunes have in common."""
    c.compute_dtype = "bfloat16"
    c.data.update(task="gsm8k", context=2048, buckets=(256, 512, 2048))
    c.model.update(remat="full", vocab_chunks=8)
    c.train.update(batch=16, learning_rate=1e-5, warmup_steps=1)
    c.optimizer.update(b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0, clip_norm=1e30)
    c.evals = dict(
        answers=evaluator("accuracy", "test", (), samples=1, temperature=0.0, max_new_tokens=512, first_round=512)
    )
    return c
