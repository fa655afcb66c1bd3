"""Plans compiled for GPUs that are not here: memory of the train state, of adapters and of half-precision moments."""

import jax
import pytest

from configs import plan
from premem_jax.errors import UserError
from premem_jax.models.architecture import MATRICES, lora_of, preset
from premem_jax.planning.worker import compile_apart
from premem_jax.running.topology import CHIPS, devices, topology

MODEL = "llama_small"


@pytest.mark.parametrize("name, slices", [("h100:9", 1), ("h100:2x2", 1), ("h100", 1), ("h100:8", 2), ("h300:1", 1)])
def test_gpus_are_those_of_one_host(name, slices):
    with pytest.raises(UserError, match="h100:1" if slices == 1 else "one host"):
        topology(name, slices)


@pytest.fixture
def compiler():
    pytest.importorskip("jax_plugins.xla_cuda12", reason="needs the GPU compiler: pip install -e '.[plan-gpu]'")


@pytest.mark.parametrize("name", [f"{kind}:2" for kind, chip in CHIPS.items() if chip.gpu])
def test_every_gpu_has_a_compiler(compiler, name):
    found = devices(topology(name))
    assert [device.platform for device in found] == ["gpu", "gpu"] and jax.default_backend() == "cpu"


def compiled(rank, mean_dtype):
    c = plan.get_config(f"model={MODEL},task=gsm8k_gpu,topology=h100:1")
    c.train.update(batch=16, micro_batches=4)
    c.data.buckets = (128,)
    c.lora.rank, c.optimizer.mean_dtype = rank, mean_dtype
    found = compile_apart(c, "train")
    return found["argument_bytes_per_chip"], found["peak_hbm_bytes_per_chip"]


@pytest.mark.slow
def test_the_train_state_has_the_size_it_should(compiler):
    """Weights and two moments of what is trained, and frozen weights in bf16; norms and rounding are the rest."""
    shape = preset(MODEL)
    whole, peak = compiled(0, "float32")
    half, half_peak = compiled(0, "bfloat16")
    adapters, adapters_peak = compiled(4, "float32")
    assert 12 * shape.parameters < whole < 12 * shape.parameters + 2**16
    assert abs(whole - half - 2 * shape.parameters) < 2**12 and peak - half_peak > 1.5 * shape.parameters
    trained = preset(MODEL, lora=lora_of(rank=4, alpha=8.0, targets=[f"{m}_proj" for m in MATRICES])).trained
    expected = 2 * shape.parameters + 12 * trained
    assert expected < adapters < 1.02 * expected + 2**16 and adapters_peak < half_peak
