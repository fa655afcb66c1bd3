"""The shape of a decoder, as one frozen dataclass, and the presets that configs name."""

import dataclasses
import difflib
import math
from collections.abc import Sequence

from premem_jax.errors import UserError

ACTIVATIONS = ("silu", "gelu_tanh")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1's rotary scaling: slows the frequencies that complete few turns within the original context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int  # tokens

    def __post_init__(self):
        if not self.high_freq_factor > self.low_freq_factor > 0:
            raise UserError(
                f"model: rope scaling needs high_freq_factor > low_freq_factor > 0, "
                f"not {self.high_freq_factor} and {self.low_freq_factor}"
            )


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters beside some matrices of every layer (Hu et al., arXiv 2106.09685): x W becomes x W + scale (x A) B."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of MATRICES

    @property
    def scale(self) -> float:
        """Factor of what the adapters add."""
        return self.alpha / self.rank


def lora_of(*, rank: int, alpha: float, targets: Sequence[str]) -> Lora | None:
    """The adapters of these settings, with targets by the names of `peft`; None for rank 0."""
    return Lora(rank, alpha, tuple(name.removesuffix("_proj") for name in targets)) if rank else None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder of Llama3 (arXiv 2407.21783), Gemma2 (2408.00118), Qwen2.5 (2412.15115), Qwen3 (2505.09388) or
    Mistral (2310.06825), Llama3 by default.

    The families differ only in the fields below. Letters as in `docs/architecture.md`.
    """

    V: int  # vocabulary size
    D: int  # model width
    L: int  # layers
    N: int  # query heads
    K: int  # key/value heads; N must be a multiple of K
    H: int  # head width; independent of D / N
    F: int  # width of the gated MLP
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # what a norm's scale is counted from: Gemma stores the distance to 1
    biases: tuple[str, ...] = ()  # of MATRICES, those with a bias
    head_norms: bool = False  # each head's queries and keys are normalised before they are rotated
    post_norms: bool = False  # attention and MLP outputs are normalised before they join the residual stream
    activation: str = "silu"  # of the MLP's gate: one of ACTIVATIONS
    query_scale: float | None = None  # factor of the attention logits; None: H**-0.5
    attention_softcap: float | None = None  # c tanh(x / c) on attention logits
    final_softcap: float | None = None  # the same on output logits
    windows: tuple[int | None, ...] = (None,)  # tokens each layer looks at, itself included; repeats through the depth
    tied_embedding: bool = False
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(D), rounded to the compute dtype
    lora: Lora | None = None  # adapters, which are then all that is trained

    def __post_init__(self):
        if self.N % self.K:
            raise UserError(f"model: {self.N} query heads do not divide into {self.K} key/value heads")
        if self.H % 2:
            raise UserError(f"model: head width H={self.H} must be even for rotary positions")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"model: activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if not self.windows or self.L % len(self.windows):
            raise UserError(f"model: {self.L} layers do not divide into groups of the {len(self.windows)} windows")
        if any(window is not None and window < 1 for window in self.windows):
            raise UserError(f"model: windows {self.windows} must be positive, or None for global attention")

    @property
    def attention_scale(self) -> float:
        """Factor of the attention logits."""
        return self.H**-0.5 if self.query_scale is None else self.query_scale

    @property
    def matrices(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The axes of inputs and of outputs of each matrix of a layer, by its name."""
        D, N, K, H, F = self.D, self.N, self.K, self.H, self.F
        attention = dict(q=((D,), (N, H)), k=((D,), (K, H)), v=((D,), (K, H)), o=((N, H), (D,)))
        return attention | dict(gate=((D,), (F,)), up=((D,), (F,)), down=((F,), (D,)))

    @property
    def parameters(self) -> int:
        """Number of parameters without adapters."""
        layer = sum(math.prod(inputs + outputs) for inputs, outputs in self.matrices.values())
        layer += sum(math.prod(self.matrices[name][1]) for name in self.biases)
        layer += (4 if self.post_norms else 2) * self.D + (2 * self.H if self.head_norms else 0)
        return self.L * layer + self.V * self.D * (1 if self.tied_embedding else 2) + self.D

    @property
    def trained(self) -> int:
        """Number of parameters that are trained: those of the adapters if there are any."""
        if self.lora is None:
            return self.parameters
        sides = (sum(map(math.prod, self.matrices[name])) for name in self.lora.targets)
        return self.L * self.lora.rank * sum(sides)


GEMMA2 = dict(
    rope_theta=10_000.0,
    norm_eps=1e-6,
    norm_offset=1.0,
    post_norms=True,
    activation="gelu_tanh",
    attention_softcap=50.0,
    final_softcap=30.0,
    tied_embedding=True,
    scaled_embedding=True,
)
LLAMA3_1 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
LOCAL_GLOBAL = (4096, None)
QWEN = dict(rope_theta=1_000_000.0, norm_eps=1e-6)
QWEN2 = QWEN | dict(biases=("q", "k", "v"))

PRESETS = {
    "llama_tiny": ModelConfig(V=256, D=96, L=3, N=4, K=2, H=24, F=256, rope_theta=1000.0),
    "llama_small": ModelConfig(V=2048, D=192, L=2, N=4, K=1, H=48, F=512, rope_theta=10_000.0),
    "llama3_8b": ModelConfig(V=128_256, D=4096, L=32, N=32, K=8, H=128, F=14_336),
    "llama3_1_8b": ModelConfig(V=128_256, D=4096, L=32, N=32, K=8, H=128, F=14_336, rope_scaling=LLAMA3_1),
    "llama3_2_1b": ModelConfig(
        V=128_256,
        D=2048,
        L=16,
        N=32,
        K=8,
        H=64,
        F=8192,
        rope_scaling=dataclasses.replace(LLAMA3_1, factor=32.0),
        tied_embedding=True,
    ),
    "llama3_2_3b": ModelConfig(
        V=128_256,
        D=3072,
        L=28,
        N=24,
        K=8,
        H=128,
        F=8192,
        rope_scaling=dataclasses.replace(LLAMA3_1, factor=32.0),
        tied_embedding=True,
    ),
    "llama3_3_70b": ModelConfig(V=128_256, D=8192, L=80, N=64, K=8, H=128, F=28_672, rope_scaling=LLAMA3_1),
    "open_llama_3b": ModelConfig(V=32_000, D=3200, L=26, N=32, K=32, H=100, F=8640, rope_theta=10_000.0, norm_eps=1e-6),
    "mistral_7b": ModelConfig(V=32_000, D=4096, L=32, N=32, K=8, H=128, F=14_336, rope_theta=10_000.0, windows=(4096,)),
    "qwen2_5_1_5b": ModelConfig(V=151_936, D=1536, L=28, N=12, K=2, H=128, F=8960, tied_embedding=True, **QWEN2),
    "qwen2_5_7b": ModelConfig(V=152_064, D=3584, L=28, N=28, K=4, H=128, F=18_944, **QWEN2),
    "qwen3_8b": ModelConfig(V=151_936, D=4096, L=36, N=32, K=8, H=128, F=12_288, head_norms=True, **QWEN),
    # Windows are shorter than the tiny tasks' sequences, so that runs of this preset exercise them.
    "gemma_tiny": ModelConfig(
        V=256, D=96, L=4, N=4, K=2, H=32, F=192, windows=(16, None), **GEMMA2 | dict(rope_theta=1000.0)
    ),
    "gemma2_2b": ModelConfig(V=256_000, D=2304, L=26, N=8, K=4, H=256, F=9216, windows=LOCAL_GLOBAL, **GEMMA2),
    "gemma2_9b": ModelConfig(V=256_000, D=3584, L=42, N=16, K=8, H=256, F=14_336, windows=LOCAL_GLOBAL, **GEMMA2),
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
