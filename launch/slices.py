"""Google Cloud's names of the TPU slices of `premem_jax.running.topology`, such as v5e:4x4."""

from typing import NamedTuple

from premem_jax.errors import UserError
from premem_jax.running.topology import Topology, topology


class Generation(NamedTuple):
    """Names for requesting one generation of TPUs.

    Sources: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (`accelerator`, `machine`),
    cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (`prefix`, `cores`, shapes), .../supported-versions (`runtime`).
    """

    accelerator: str  # label of GKE's nodes
    machine: str  # of GKE, before the chips of a host
    prefix: str  # of the Cloud TPU API's accelerator type, before the number of cores
    cores: int  # of a chip, as that number counts them
    runtime: str  # software version of a TPU VM
    dimensions: int


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", "ct4p-hightpu", "v4", 2, "tpu-ubuntu2204-base", 3),
    "v5e": Generation("tpu-v5-lite-podslice", "ct5lp-hightpu", "v5litepod", 1, "v2-alpha-tpuv5-lite", 2),
    "v5p": Generation("tpu-v5p-slice", "ct5p-hightpu", "v5p", 2, "v2-alpha-tpuv5", 3),
    "v6e": Generation("tpu-v6e-slice", "ct6e-standard", "v6e", 1, "v2-alpha-tpuv6e", 2),
}
HOST = 4  # chips of the hosts that slices are made of
# Shapes that an accelerator type names by a number of chips; v5e and v6e have no others.
SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16"),
}


class Slices(NamedTuple):
    """`topology.slices` equal slices."""

    topology: Topology
    generation: Generation
    shape: str
    hosts: int  # of one slice
    chips_per_host: int

    @property
    def machine_type(self) -> str:
        """GKE's name of a host, for its node pools."""
        return f"{self.generation.machine}-{self.chips_per_host}t"

    @property
    def accelerator_type(self) -> str:
        """The Cloud TPU API's name of one slice.

        Raises:
          UserError: the name for this number of chips means another shape.
        """
        if self.shape not in SHAPES[self.generation.dimensions]:
            raise UserError(
                f"--topology={self.topology.name}: an accelerator type has a number of cores alone, which stands for "
                f"{', '.join(SHAPES[self.generation.dimensions])}; take one of these, or GKE"
            )
        return f"{self.generation.prefix}-{self.hosts * self.chips_per_host * self.generation.cores}"


def slices(name: str, count: int) -> Slices:
    """`count` slices of the topology `name`, with hosts of four chips (or of one, for a slice of one chip).

    Raises:
      UserError: no such kind of TPU, a shape it does not have, or no slice at all.
    """
    known = topology(name, count)
    kind, _, shape = name.partition(":")
    if kind not in GENERATIONS:
        raise UserError(f"--topology={name}: launchers start TPUs ({', '.join(GENERATIONS)}), not GPUs")
    generation, chips = GENERATIONS[kind], known.chips // count
    wrong = len(shape.split("x")) != generation.dimensions or (chips % HOST and chips > 1)
    if wrong or (generation.dimensions == 2 and shape not in SHAPES[2]):
        raise UserError(f"--topology={name}: {kind} has the shapes {', '.join(SHAPES[generation.dimensions])}")
    return Slices(known, generation, shape, max(1, chips // HOST), min(HOST, chips))
