"""Foretell where few-shot ability appears, and see: a ladder of small models from pretraining to verdict, on two cores.

  python -m premem_jax.main --config=configs/emergence_quickstart.py

Models of two widths are pretrained on facts in one format and a few questions in another (`tasks/knowledge.py`). Each
of their checkpoints is finetuned on growing numbers of questions. From that comes the forecast of the loss at which
models answer questions from three examples in the prompt; it is sealed, and then wider models are pretrained and
evaluated. `runs/emergence_quickstart/forecast/report.html` has the verdict. The settings are not
settled: no pilot left chance with them (docs/emergence.md).

Options after the colon: seed; mixes=true compares two mixes of pretraining texts, of which one asks a third as often:
with which does the ability appear at a higher loss? planted=true draws accuracies from a known law on the real losses
instead of finetuning, which tries the pipeline.
"""

from premem_jax import config

LAW = (2.0, 2.8, 1.5, 0.5, 1 / 64)  # elbows in a prompt and at the largest amount, alpha, slope, chance


def get_config(arg=None):
    options = config.parse_arg(arg, seed=0, planted=False, mixes=False)
    c = config.rungs()
    c.seed = options.seed
    c.planted = LAW if options.planted else ()
    weak = {f"fit-{width}": {"model.width": width} for width in (64, 96)}
    longer = {"pretrain.steps": 2400, "pretrain.first": 600, "pretrain.rungs": 6}
    strong = {f"truth-{width}": {"model.width": width} | longer for width in (144, 192)}
    asked = c.world.asked
    mixes = {"often": {"world.asked": asked}, "seldom": {"world.asked": asked / 3}} if options.mixes else {}
    return config.ladder(c, weak, strong, mixes)
