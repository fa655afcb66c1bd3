"""Does pre-memorization accuracy predict test accuracy? An analysis of finished runs, on the CPU in seconds.

  python -m premem_jax.main --config=configs/analyze.py --config.traces=DIR

DIR holds run folders of this program, the published runs of Kang et al., or tables from any trainer (docs/study.md).
On the published Llama3 8B GSM8K runs it gives their R² of 0.9354 against y = x.
"""

from premem_jax import config


def get_config(arg=None):
    config.parse_arg(arg)
    return config.analyze()
