"""TPU chips and slices by name: figures of a chip, and absent devices to compile for."""

import math
import os
import re
from typing import NamedTuple

from premem_jax.errors import UserError

# Compiler settings: do not look for a TPU, and allow several compiling processes.
ENVIRONMENT = dict(JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_SKIP_MDS_QUERY="1")


class Chip(NamedTuple):
    """Published figures of one chip, except `hbm`, the memory that the compiler gives to programs."""

    hbm: float  # GiB
    flops: float  # bf16, per second
    hbm_bandwidth: float  # bytes per second
    ici_bandwidth: float  # bytes per second, all links of a chip together
    options: tuple = ()  # pairs, of `get_topology_desc`


# Source: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; hbm: the compiler's error messages for programs that do not fit.
CHIPS = {
    "v4": Chip(30.75, 275e12, 1.228e12, 300e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip(15.75, 197e12, 0.819e12, 200e9),
    "v5p": Chip(95.74, 459e12, 2.765e12, 600e9, (("chip_config_name", "megacore"),)),
    "v6e": Chip(31.25, 918e12, 1.640e12, 448e9),
}
DCN_BANDWIDTH = 3.1e9  # bytes per second and chip between slices: a host's 100 Gbit/s over 4 chips


class Topology(NamedTuple):
    """`slices` slices of the shape `name`, such as v5e:4x4."""

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
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", shape):
        raise UserError(f"topology={name!r:.80}: write CHIP:SHAPE, such as v5e:4x4; chips are {', '.join(CHIPS)}")
    if slices < 1:
        raise UserError(f"slices={slices}: there is at least one")
    return Topology(name, slices, CHIPS[kind], slices * math.prod(map(int, shape.split("x"))))


def devices(topology: Topology) -> list:
    """Devices to compile for; nothing can run on them.

    Raises:
      UserError: libtpu is not installed or does not know the shape.
    """
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    slices = {} if topology.slices == 1 else dict(num_slices=topology.slices)
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **dict(topology.chip.options), **slices
        )
    except Exception as error:
        why = str(error).splitlines()[0][:200]
        raise UserError(
            f"topology={topology.name!r} cannot be described ({why}); is the shape right, and is libtpu installed "
            "(pip install -e '.[plan]')?"
        ) from error
    return description.devices
