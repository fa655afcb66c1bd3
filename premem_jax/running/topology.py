"""TPU slices and GPUs by name: figures of a chip, and absent devices to compile for."""

import math
import os
import re
from typing import NamedTuple

from premem_jax.errors import UserError

# Compiler settings: do not look for a TPU or a GPU, and allow several compiling processes.
ENVIRONMENT = dict(JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_SKIP_MDS_QUERY="1")


class Gpu(NamedTuple):
    """What XLA's compiler must know of an NVIDIA GPU, beside its memory."""

    capability: tuple[int, int]
    cores: int
    threads: int  # per core
    shared: int  # bytes of shared memory per core


class Chip(NamedTuple):
    """Published figures of one chip, except `hbm`, the memory that the compiler gives to programs."""

    hbm: float  # GiB
    flops: float  # bf16, per second
    hbm_bandwidth: float  # bytes per second
    ici_bandwidth: float  # bytes per second, all links of a chip together
    options: tuple = ()  # pairs, of `get_topology_desc`
    gpu: Gpu | None = None  # none: a TPU

    @property
    def shape(self) -> str:
        """Pattern of the shapes: that of a slice, or the number of GPUs of a host."""
        return r"[1-8]" if self.gpu else r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}"


def gpu(mib: int, flops: float, bandwidth: float, links: float, capability, cores, threads=2048, shared=233_472):
    """A GPU of `mib` MiB, as `nvidia-smi` shows them, of which programs get 95 %."""
    return Chip(round(0.95 * mib / 1024, 2), flops, bandwidth, links, gpu=Gpu(capability, cores, threads, shared))


# Source: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; hbm: the compiler's error messages for programs that do not fit.
CHIPS = {
    "v4": Chip(30.75, 275e12, 1.228e12, 300e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip(15.75, 197e12, 0.819e12, 200e9),
    "v5p": Chip(95.74, 459e12, 2.765e12, 600e9, (("chip_config_name", "megacore"),)),
    "v6e": Chip(31.25, 918e12, 1.640e12, 448e9),
    # Source: NVIDIA's data sheets (dense rates with fp32 sums) and XLA's xla/backends/gpu/target_config/specs.
    "rtx4090": gpu(24_564, 165e12, 1.008e12, 64e9, (8, 9), 128, 1536, 102_400),
    "l40s": gpu(46_068, 362e12, 0.864e12, 64e9, (8, 9), 142, 1536, 102_400),
    "a100": gpu(81_920, 312e12, 2.039e12, 600e9, (8, 0), 108, shared=167_936),
    "h100": gpu(81_559, 989e12, 3.352e12, 900e9, (9, 0), 132),
    "h200": gpu(143_771, 989e12, 4.800e12, 900e9, (9, 0), 132),
}
DCN_BANDWIDTH = 3.1e9  # bytes per second and chip between slices: a host's 100 Gbit/s over 4 chips


class Topology(NamedTuple):
    """`slices` slices of the shape `name`, such as v5e:4x4; or the GPUs of one host, such as h100:8."""

    name: str
    slices: int
    chip: Chip
    chips: int  # of all slices

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def topology(name: str, slices: int = 1) -> Topology:
    """The slices called `name`.

    Raises:
      UserError: an unknown chip or shape, or no slice.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(CHIPS[kind].shape, shape):
        raise UserError(
            f"topology={name!r:.80}: write CHIP:SHAPE, such as v5e:4x4 or h100:1; chips are {', '.join(CHIPS)}"
        )
    if slices < 1 or (slices > 1 and CHIPS[kind].gpu):
        raise UserError(f"slices={slices}: there is at least one, and of GPUs one host")
    return Topology(name, slices, CHIPS[kind], slices * math.prod(map(int, shape.split("x"))))


def devices(topology: Topology) -> list:
    """Devices to compile for; nothing can run on them.

    Raises:
      UserError: the compiler (libtpu, or JAX's CUDA plugin) is not installed or does not know the shape.
    """
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options = dict(platform="tpu", topology_name=topology.name, **dict(topology.chip.options))
    if topology.slices > 1:
        options |= dict(num_slices=topology.slices)
    if topology.chip.gpu:
        target = _target(topology.chip, topology.name.partition(":")[0])
        options = dict(platform="cuda", topology_name=topology.name, target_config=target)
        options |= dict(topology=f"1x1x{topology.chips}")
    try:
        description = topologies.get_topology_desc(**options)
    except Exception as error:
        why = str(error).splitlines()[0][:200]
        extra = "plan-gpu" if topology.chip.gpu else "plan"
        raise UserError(
            f"topology={topology.name!r} cannot be described ({why}); is the shape right, and is the compiler "
            f"installed (pip install -e '.[{extra}]')?"
        ) from error
    return description.devices


def _target(chip: Chip, name: str) -> str:
    """XLA's description of a GPU, a `GpuTargetConfigProto` as text."""
    major, minor = chip.gpu.capability
    sizes = dict(
        core_count=chip.gpu.cores,
        threads_per_core_limit=chip.gpu.threads,
        shared_memory_per_core=chip.gpu.shared,
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=chip.gpu.shared - 1024,
        memory_bandwidth=int(chip.hbm_bandwidth),
        device_memory_size=int(chip.hbm * 2**30),
        l2_cache_size=40 * 2**20,
        clock_rate_ghz=1.8,
        **dict(threads_per_block_limit=1024, threads_per_warp=32, fpus_per_core=128),
        **dict(registers_per_core_limit=65_536, registers_per_block_limit=65_536),
        **dict(block_dim_limit_x=2**31 - 1, block_dim_limit_y=65_535, block_dim_limit_z=65_535),
    )
    info = " ".join(f"{key}: {value}" for key, value in sizes.items())
    return (
        f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 }} device_description_str: "{name}"'
    )
