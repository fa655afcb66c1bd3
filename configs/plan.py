"""Compile before you pay: does this run fit on these chips, how long does a step take at best, and what does it cost?

  python -m premem_jax.main --config=configs/plan.py:model=llama3_8b,topology=v5e:4x4
  python -m premem_jax.main --config=configs/plan.py:model=gemma2_9b,task=math,topology=v5e:4x4,slices=2
  python -m premem_jax.main --config=configs/plan.py:model=llama3_2_1b,task=gsm8k_gpu,topology=rtx4090:1

Needs no TPU and no GPU, but its compiler: pip install -e '.[plan]', for GPUs '.[plan-gpu]'. It compiles the train,
score and sample programs of the paper's run (configs/MODEL_TASK.py, for other models that of Llama3), which takes some
minutes on two CPU cores.
Every key of that run can be changed, such as --config.train.micro_batches=8. Options after the colon: model, task
(gsm8k, math, gsm8k_gpu, dynamics_hh, dynamics_ultrafeedback or emergence_openllama, a finetune of that ladder),
topology (v5e:4x4, v6e:2x4, v5p:2x2x2, ...; GPUs of one host: rtx4090:1, l40s:1, a100:1, h100:1, h200:1 or more),
slices, search (false: do not look for the nearest configuration that fits).
"""

from configs import (
    dynamics_hh,
    dynamics_ultrafeedback,
    emergence_openllama,
    gemma2_9b_gsm8k,
    gemma2_9b_math,
    llama3_1b_gpu,
    llama3_8b_gsm8k,
    llama3_8b_math,
)
from premem_jax.config import parse_arg
from premem_jax.errors import UserError
from premem_jax.running.topology import topology

RUNS = {
    "gsm8k": llama3_8b_gsm8k.get_config,
    "math": llama3_8b_math.get_config,
    "gsm8k_gpu": llama3_1b_gpu.get_config,
    "dynamics_hh": dynamics_hh.get_config,
    "dynamics_ultrafeedback": dynamics_ultrafeedback.get_config,
    "emergence_openllama": emergence_openllama.finetune,  # whatever the model
}
OWN = {("gemma2_9b", "gsm8k"): gemma2_9b_gsm8k.get_config, ("gemma2_9b", "math"): gemma2_9b_math.get_config}


def recipe(model: str, task: str):
    """The run of a task with a model: the config of its own, if it has one."""
    return OWN[model, task]() if (model, task) in OWN else RUNS[task](model=model)


def get_config(arg=None):
    options = parse_arg(arg, model="llama3_8b", task="gsm8k", topology="v5e:4x4", slices=1, search=True)
    if options.task not in RUNS:
        raise UserError(f"config option task={options.task!r}: choose {', '.join(RUNS)}")
    c = recipe(options.model, options.task)
    c.experiment = {"finetune": "plan", "preference": "plan_preference"}[c.experiment]
    c.mesh.data = options.slices
    c.mesh.decode_tensor = min(c.mesh.decode_tensor, topology(options.topology, options.slices).chips)
    c.plan = dict(topology=options.topology, slices=options.slices, search=options.search)
    return c
