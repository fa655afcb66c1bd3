"""What a decoder looks like: one frozen record, and the presets that configs name."""

import dataclasses
import difflib

from premem_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama decoder (Dubey et al., arXiv 2407.21783). Letters as in `docs/architecture.md`."""

    V: int  # vocabulary size
    D: int  # model width
    L: int  # layers
    N: int  # query heads
    K: int  # key/value heads; N must be a multiple of K
    H: int  # head width
    F: int  # width of the gated MLP
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    tied_embedding: bool = False

    def __post_init__(self):
        if self.N % self.K:
            raise UserError(f"model: {self.N} query heads do not divide into {self.K} key/value heads")
        if self.H % 2:
            raise UserError(f"model: head width H={self.H} must be even for rotary positions")

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        attention = self.D * self.H * (2 * self.N + 2 * self.K)
        layer = attention + 3 * self.D * self.F + 2 * self.D
        return self.L * layer + self.V * self.D * (1 if self.tied_embedding else 2) + self.D


PRESETS = {
    "llama_tiny": ModelConfig(V=256, D=96, L=3, N=4, K=2, H=24, F=256, rope_theta=1000.0),
    "llama_small": ModelConfig(V=2048, D=192, L=2, N=4, K=1, H=48, F=512, rope_theta=10_000.0),
    "llama3_8b": ModelConfig(V=128_256, D=4096, L=32, N=32, K=8, H=128, F=14_336),
}


def preset(name: str, **overrides) -> ModelConfig:
    """The preset called `name`, with any field replaced.

    Raises:
      UserError: no such preset; the nearest name is suggested.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no model preset {name!r}{hint} (there are: {', '.join(sorted(PRESETS))})")
    return dataclasses.replace(PRESETS[name], **overrides)
