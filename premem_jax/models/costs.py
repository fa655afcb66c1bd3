"""Arithmetic, memory traffic and network traffic of the three programs, counted from shapes.

Not taken from the compiler, which counts a loop's body once. Letters as in `docs/architecture.md`.
"""

from typing import NamedTuple

from premem_jax.models.architecture import ModelConfig
from premem_jax.running.topology import DCN_BANDWIDTH, Topology

HALF = 2  # bytes of a bf16 number


class Layout(NamedTuple):
    """Sizes of the mesh that a program runs on."""

    data: int
    fsdp: int
    tensor: int

    @property
    def chips(self) -> int:
        return self.data * self.fsdp * self.tensor


class Cost(NamedTuple):
    """Cost of one call of a program: total model FLOPs of all chips, and bytes moved by each chip."""

    flops: float
    hbm_bytes: float
    ici_bytes: float
    dcn_bytes: float = 0.0

    def times(self, count: float) -> "Cost":
        """Of so many calls."""
        return Cost(*(count * x for x in self))

    def seconds(self, topology: Topology) -> float:
        """The roofline: the longest of compute, memory and network time at the published rates."""
        chip = topology.chip
        return max(
            self.flops / topology.chips / chip.flops,
            self.hbm_bytes / chip.hbm_bandwidth,
            self.ici_bytes / chip.ici_bandwidth,
            self.dcn_bytes / DCN_BANDWIDTH,
        )


def matrices(config: ModelConfig) -> int:
    """Parameters in matrix products: all except the norms and the embedding lookup."""
    attention = config.D * config.H * 2 * (config.N + config.K)
    return config.L * (attention + 3 * config.D * config.F) + config.V * config.D


def attention_flops(config: ModelConfig, first: int, last: int) -> float:
    """FLOPs of causal attention for queries at positions first..last-1, in all layers."""
    seen = lambda window: sum(min(t + 1, window or t + 1) for t in range(first, last))
    return 4 * config.N * config.H * sum(seen(window) for window in config.windows) * config.L / len(config.windows)


def forward_flops(config: ModelConfig, rows: int, T: int) -> float:
    """FLOPs of a forward pass with logits at every position; causal attention counts half."""
    return rows * (2 * matrices(config) * T + attention_flops(config, 0, T))


def cache_bytes(config: ModelConfig, tokens: float) -> float:
    """Bytes of keys and values of this many tokens in bf16."""
    return 2 * config.L * config.K * config.H * HALF * tokens


def train(config: ModelConfig, layout: Layout, slices: int, *, B: int, T: int, micro_batches: int) -> Cost:
    """One update: weights gathered in bf16 forward and backward for every micro-batch, gradients scattered once each.

    HBM: fp32 weights, both moments and the gradient are read and written once, gathered weights are read twice. With
    adapters there is no gradient of the gathered weights; the adapters themselves are on every chip.
    """
    whole, lora = config.parameters * HALF / layout.tensor, config.lora
    own = config.trained / (1 if lora else layout.fsdp * layout.tensor)
    activations = B / (layout.data * layout.fsdp) * T * config.D * HALF
    ici = (2 if lora else 3) * micro_batches * whole * _others(layout.fsdp)
    ici += 6 * config.L * 2 * activations * _others(layout.tensor)
    within = layout.data // slices * (layout.fsdp if lora else 1)  # chips that sum a gradient that each has whole
    frozen = 2 * B * T * (matrices(config) - 3 * config.trained) if lora else 0
    return Cost(
        flops=3 * forward_flops(config, B, T) - frozen,
        hbm_bytes=32 * own + 2 * micro_batches * whole + 16 * config.L * activations,
        ici_bytes=ici + 2 * 4 * own * _others(within),
        dcn_bytes=2 * 4 * own * _others(slices),
    )


def score(config: ModelConfig, layout: Layout, *, B: int, T: int) -> Cost:
    """Target likelihood of a batch: one forward pass over gathered weights."""
    whole = config.parameters * HALF / layout.tensor
    activations = B / (layout.data * layout.fsdp) * T * config.D * HALF
    return Cost(
        flops=forward_flops(config, B, T),
        hbm_bytes=4 * config.parameters / layout.chips * layout.data + whole + 8 * config.L * activations,
        ici_bytes=whole * _others(layout.fsdp) + 2 * config.L * 2 * activations * _others(layout.tensor),
    )


def sample(config: ModelConfig, layout: Layout, *, B: int, R: int, P: int, T: int) -> Cost:
    """R responses of T tokens to each of B prompts of P tokens. Every step reads weights and caches once.

    The samples of a prompt share its cache, which is read once for all.
    """
    rows = B * R / (layout.data * layout.fsdp)
    prefill = B * (2 * (matrices(config) - config.V * config.D) * P + attention_flops(config, 0, P))
    decode = B * R * (2 * matrices(config) * T + attention_flops(config, P, P + T))
    weights = matrices(config) * HALF / layout.tensor
    caches = cache_bytes(config, B * P + B * R * T / 2) / layout.chips
    activations = rows * config.D * HALF
    return Cost(
        flops=prefill + decode,
        hbm_bytes=T * (weights + caches),
        ici_bytes=T * 2 * config.L * 2 * activations * _others(layout.tensor),
    )


def _others(n: int) -> float:
    """The share of an array sharded n ways that a chip receives from others."""
    return (n - 1) / n
