"""Backends of causal self-attention, chosen by device and case, or by name.

`reference` runs everywhere and supports everything. `splash` is JAX's Pallas kernel for TPUs, with soft-cap and window.
`cudnn` is NVIDIA's flash attention, which has no soft-cap and no segments: on GPUs, Gemma2 and rows that several
sequences share use `reference`.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from premem_jax.errors import UserError
from premem_jax.models.attention import attend_causally

log = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "splash", "cudnn")
LANES = 128  # a TPU's vector registers; lengths and head widths of the splash kernel are multiples


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """Causal attention of right-padded sequences to themselves; several may share a row, as segments.

    `backend` is one of BACKENDS; `mesh` is the mesh of the arrays, None for a single device.
    """

    backend: str = "auto"
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise UserError(f"model.attention={self.backend!r}: choose {', '.join(BACKENDS)}")

    def __call__(
        self, q_BTNH, k_BKTH, v_BKTH, segments_BT=None, *, window: int | None, scale: float, cap: float | None
    ) -> jax.Array:
        """Attention output (B, T, N, H); `segments_BT`, `window`, `scale` and `cap` as in `attend_causally`.

        Raises:
          UserError: the backend was chosen by name and does not support the case.
        """
        case = dict(window=window, scale=scale, cap=cap)
        obstacles = {
            "splash": self._splash_obstacle(q_BTNH.shape, k_BKTH.shape[1]),
            "cudnn": self._cudnn_obstacle(q_BTNH, cap, segments_BT),
            "reference": None,
        }
        chosen = self.backend
        if chosen == "auto":
            chosen = {"tpu": "splash", "gpu": "cudnn"}.get(self._platform, "reference")
            why = obstacles[chosen]
            chosen = chosen if why is None else "reference"
            _say(chosen, self._platform, why)
        elif obstacles[chosen]:
            raise UserError(f"model.attention={chosen}: {obstacles[chosen]}; set model.attention=auto")
        if chosen == "splash":
            return self._splash(q_BTNH, k_BKTH, v_BKTH, segments_BT, **case)
        if chosen == "cudnn":
            return _cudnn(q_BTNH, k_BKTH, v_BKTH, **case)
        return attend_causally(q_BTNH, k_BKTH, v_BKTH, segments_BT, **case)

    @property
    def _platform(self) -> str:
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    def _splash_obstacle(self, shape_BTNH, K: int) -> str | None:
        B, T, _, H = shape_BTNH
        shards, heads = self._parts()
        if T % LANES or H % LANES:
            return f"length {T} and head width {H} must be multiples of {LANES}"
        if B % shards or K % heads:
            return f"{B} rows and {K} key/value heads do not divide over the mesh ({shards} x {heads})"
        return None

    def _cudnn_obstacle(self, q_BTNH, cap, segments_BT) -> str | None:
        if self._platform != "gpu":
            return f"needs a GPU, and this is a {self._platform}"
        if cap is not None:
            return "has no soft-cap of attention logits"
        if segments_BT is not None:
            return "has no segments, and sequences share rows (train.packed_tokens)"
        if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16) or q_BTNH.shape[3] > 128:
            return f"takes 16-bit numbers and heads of at most 128, not {q_BTNH.dtype} and {q_BTNH.shape[3]}"
        return None

    def _parts(self) -> tuple[int, int]:
        """Numbers of shards of the batch and of the heads."""
        shape = {} if self.mesh is None else self.mesh.shape
        return shape.get("data", 1) * shape.get("fsdp", 1), shape.get("tensor", 1)

    def _splash(self, q_BTNH, k_BKTH, v_BKTH, segments_BT, *, window, scale, cap):
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        heads = q_BTNH.shape[2] // self._parts()[1]
        kernel = _splash_kernel(heads, q_BTNH.shape[1], window, cap, self._platform == "cpu")
        args = [(q_BTNH * scale).swapaxes(1, 2), k_BKTH, v_BKTH]
        args += [] if segments_BT is None else [SegmentIds(segments_BT, segments_BT)]
        local = jax.vmap(kernel)
        if self.mesh is not None:
            rows = ("data", "fsdp")
            cut = P(rows, "tensor")
            specs = (cut, cut, cut, P(rows))[: len(args)]
            local = jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=cut, check_vma=False)
        return local(*args).swapaxes(1, 2)


def _splash_kernel(heads: int, T: int, window: int | None, cap: float | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.CausalMask((T, T)) if window is None else splash.LocalMask((T, T), (window - 1, 0), 0)
    block = next(size for size in (512, 384, 256, LANES) if T % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


def _cudnn(q_BTNH, k_BKTH, v_BKTH, *, window, scale, cap):
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BKTH.swapaxes(1, 2),
        v_BKTH.swapaxes(1, 2),
        is_causal=True,
        scale=scale,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


REFERENCE = SelfAttention("reference")


@functools.cache
def _say(chosen: str, platform: str, why: str | None) -> None:
    """Logs each choice once per process."""
    log.info("attention on %s: %s%s", platform, chosen, f" ({why})" if why else "")
