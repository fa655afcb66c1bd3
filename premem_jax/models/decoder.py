"""The decoder of all families: NNX modules with layers that are stacked and scanned, or unstacked for decoding.

Shapes use the letters of `docs/architecture.md`: B batch, T query length, S key length, N query heads, K key/value
heads, H head width, D model width, F MLP width, V vocabulary, L layers.

Sequences are padded on the right. Causal attention then needs no padding mask: a real token never sees a pad, and the
outputs at pads are never read.

The scanned unit is one period of `config.windows`: a layer in Llama3, a local and a global layer in Gemma2. Parameters
are always stacked along L, so that their layout does not depend on the family. Decoding does not scan, because a scan
copies each layer out of its stack for every token; `unstack` does so once for many tokens.
"""

import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.models import adapters, rope
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.attention import attend_with_prompt, softcap, within
from premem_jax.models.backends import REFERENCE, SelfAttention

# Rematerialization policies: the activations of a layer that are kept for the backward pass.
REMAT = {
    "none": None,  # everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input alone
}


class Cache(NamedTuple):
    """Keys and values of one layer. While decoding, both are right operands of products with few rows."""

    k: jax.Array  # (B, K, H, S)
    v: jax.Array  # (B, K, S, H)

    def empty(self, rows: int, slots: int) -> "Cache":
        """An empty cache for other sequences, with the same heads."""
        _, K, _, H = self.v.shape
        return Cache(jnp.zeros((rows, K, H, slots), self.k.dtype), jnp.zeros((rows, K, slots, H), self.v.dtype))


class Norm(nnx.Module):
    """Root-mean-square normalisation in fp32 (Zhang & Sennrich, arXiv 1910.07467)."""

    def __init__(self, config: ModelConfig, width: int):
        self.scale = nnx.Param(jnp.full((width,), 1 - config.norm_offset, jnp.float32))
        self.eps, self.offset = config.norm_eps, config.norm_offset

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class Matrices(nnx.Module):
    """Some matrices of a layer by name; beside `q` may stand a bias, `q_bias`, and an adapter, `q_A` and `q_B`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, **fan_in: int):
        """`fan_in` names the matrices; a random one has a standard deviation of fan_in**-0.5."""
        self.config = config
        for name, size in fan_in.items():
            inputs, outputs = config.matrices[name]
            setattr(self, name, weight(rngs, inputs + outputs, size))
            if name in config.biases:
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(outputs, jnp.float32)))
            if config.lora and name in config.lora.targets:
                a, b = f"{name}{adapters.A}", f"{name}{adapters.B}"
                for key, array in zip((a, b), adapters.random(rngs, config.lora, inputs, outputs), strict=True):
                    setattr(self, key, nnx.Param(array))

    def times(self, x, name: str):
        """`x`, whose last axes are the inputs of the matrix `name`, times that matrix, and its bias added."""
        axes = len(self.config.matrices[name][0])
        y = linear(x, getattr(self, name), axes)
        if name in self.config.biases:
            y += getattr(self, f"{name}_bias")[...].astype(y.dtype)
        if (lora := self.config.lora) and name in lora.targets:
            inner = linear(x, getattr(self, f"{name}{adapters.A}"), axes)
            y += lora.scale * linear(inner, getattr(self, f"{name}{adapters.B}"))
        return y


class Attention(Matrices):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D = config.D
        super().__init__(config, rngs, q=D, k=D, v=D, o=config.N * config.H * 2 * config.L)
        if config.head_norms:
            self.q_norm, self.k_norm = Norm(config, config.H), Norm(config, config.H)

    def project(self, x_BTD, positions_BT):
        """Rotated queries and keys, and values: (B, T, N, H), (B, K, T, H), (B, K, T, H)."""
        q, k, v = (self.times(x_BTD, name) for name in "qkv")
        if self.config.head_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        frequency = rope.frequencies(self.config)
        return rope.rotary(q, positions_BT[:, :, None], frequency), rope.rotary(k, positions_BT[:, None], frequency), v

    @property
    def logits(self) -> dict:
        """Arguments of `attend` that shape the logits: scale and soft-cap."""
        return dict(scale=self.config.attention_scale, cap=self.config.attention_softcap)

    def combine(self, out_BTNH):
        return self.times(out_BTNH, "o")


class Mlp(Matrices):
    """Gated MLP: SwiGLU or GeGLU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs, gate=config.D, up=config.D, down=config.F * 2 * config.L)
        self.activation = config.activation

    def __call__(self, x):
        activate = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}[self.activation]
        return self.times(activate(self.times(x, "gate")) * self.times(x, "up"), "down")


class Layer(nnx.Module):
    """One pre-norm residual block; with post-norms, the output of each branch is normalised too."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, config.D)
        self.attention = Attention(config, rngs)
        self.mlp_norm = Norm(config, config.D)
        self.mlp = Mlp(config, rngs)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.attention_post_norm = Norm(config, config.D)
            self.mlp_post_norm = Norm(config, config.D)

    def forward(self, x, positions_BT, segments_BT, self_attention: SelfAttention, window: int | None):
        """A forward pass over whole sequences; also returns their keys and values."""
        q, k, v = self.attention.project(self.attention_norm(x), positions_BT)
        out = self_attention(q, k, v, segments_BT, window=window, **self.attention.logits)
        return self._add(x, out), Cache(k.swapaxes(2, 3), v)

    def decode(self, x, positions, prompt: Cache, prompt_mask, own: Cache, own_mask, step):
        """One new token per sample; its keys and values go to slot `step` of `own`, in place."""
        q, k, v = self.attention.project(self.attention_norm(x), positions)
        put = jax.lax.dynamic_update_slice_in_dim
        own = Cache(put(own.k, k.swapaxes(2, 3), step, axis=3), put(own.v, v, step, axis=2))
        out = attend_with_prompt(q[:, 0], prompt, prompt_mask, own, own_mask, **self.attention.logits)
        return self._add(x, out[:, None]), own

    def _add(self, x, attended_BTNH):
        """The residual stream after both branches, given the output of the heads."""
        y = self.attention.combine(attended_BTNH)
        x = x + (self.attention_post_norm(y) if self.post_norms else y)
        y = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_post_norm(y) if self.post_norms else y)


class Decoder(nnx.Module):
    """The decoder. `layers` is one layer with parameters stacked along L, or a list of L layers."""

    def __init__(
        self,
        config: ModelConfig,
        dtype=jnp.float32,
        remat: str = "none",
        vocab_chunks: int = 1,
        self_attention: SelfAttention = REFERENCE,
        stacked: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        self.stacked = stacked
        self.config, self.dtype, self.remat, self.vocab_chunks = config, dtype, remat, vocab_chunks
        self.self_attention = self_attention
        self.embedding = weight(rngs, (config.V, config.D), fan_in=1 if not config.tied_embedding else config.D)
        if stacked:
            self.layers = nnx.vmap(lambda r: Layer(config, r))(rngs.split(config.L))
        else:
            self.layers = nnx.List(Layer(config, rngs) for _ in range(config.L))
        self.final_norm = Norm(config, config.D)
        if not config.tied_embedding:
            self.head = weight(rngs, (config.D, config.V), fan_in=config.D)

    def __call__(self, tokens_BT, segments_BT=None, positions_BT=None) -> tuple[jax.Array, list[Cache]]:
        """Final hidden states (B, T, D) of right-padded sequences, and their keys and values as caches with S = T.

        Where several sequences share a row, one after another, `segments_BT` numbers them: a token sees those of its
        own number alone, and positions begin at 0 in each.
        """
        if positions_BT is None:
            positions_BT = positions(tokens_BT.shape[1], segments_BT)
        options = dict(positions_BT=positions_BT, segments_BT=segments_BT, self_attention=self.self_attention)
        forward = partial(Layer.forward, **options)
        x = self._embed(tokens_BT)
        x, caches = self._scan(forward, x) if self.stacked else self._one_by_one(forward, x)
        return self.final_norm(x), caches

    def _scan(self, forward, x):
        windows, mesh = self.config.windows, self.self_attention.mesh
        g = len(windows)
        graphdef, stacked = nnx.split(self.layers)
        # Weights are cast before the scan, and a layer is sliced from its stack inside `remat`. JAX would keep whatever
        # the scan body itself made of its weights as a second stack for the backward pass.
        convert = lambda x: x.astype(self.dtype) if x.ndim > 2 else x
        groups = jax.tree.map(lambda x: convert(x).reshape(-1, g, *x.shape[1:]), nnx.to_pure_dict(stacked))

        def layer_forward(i, x, group):
            return forward(nnx.merge(graphdef, sharding.gathered(mesh, at(group, i))), x, window=windows[i])

        if self.remat != "none":
            layer_forward = jax.checkpoint(layer_forward, policy=REMAT[self.remat], static_argnums=0)

        def body(x, group):
            caches = []
            for i in range(g):
                x, cache = layer_forward(i, x, group)
                caches.append(cache)
            return x, caches

        # A few layers are unrolled: without the copies to and from the stack, a train step is a tenth faster.
        x, caches = jax.lax.scan(body, x, groups, unroll=self.config.L <= 4)
        return x, [at(cache, i) for i in range(self.config.L // g) for cache in caches]

    def _one_by_one(self, forward, x):
        caches = []
        for layer, window in self._each():
            x, cache = forward(layer, x, window=window)
            caches.append(cache)
        return x, caches

    def decode(self, token_X, position_X, prompt, prompt_mask_BRP, own, step) -> tuple[jax.Array, list[Cache]]:
        """Hidden states (X, D) of one new token per sample, X = B * R with the samples of a prompt next to each other.

        Args:
          token_X, position_X: the tokens and their rotary positions.
          prompt: caches of the prompts by layer, from the forward pass, S = P; shared by the samples of each prompt.
            Slot p is position p.
          prompt_mask_BRP: True at the tokens of its prompt that a sample follows; R may be 1.
          own: caches of the sampled tokens by layer, B = X and S = T. Slots up to `step` are in use; positions rise by
            one per slot.
          step: slot of the new tokens.
        """
        x, caches = self._embed(token_X[:, None]), []
        masks = {
            window: decode_masks(position_X, prompt_mask_BRP, step, own[0].v.shape[2], window)
            for window in self.config.windows
        }
        for (layer, window), of_prompt, of_own in zip(self._each(), prompt, own, strict=True):
            prompt_mask, own_mask = masks[window]
            x, cache = layer.decode(x, position_X[:, None], of_prompt, prompt_mask, of_own, own_mask, step)
            caches.append(cache)
        return self.final_norm(x)[:, 0], caches

    def _each(self):
        """Every layer and its window."""
        layers = self.layers
        if self.stacked:
            graphdef, stacked = nnx.split(self.layers)
            layers = (nnx.merge(graphdef, at(stacked, i)) for i in range(self.config.L))
        return zip(layers, itertools.cycle(self.config.windows))

    def logits(self, hidden_BTD) -> jax.Array:
        """fp32 logits (B, T, V)."""
        return self._capped(hidden_BTD, self._head_DV())

    def next_token_nll(self, hidden_BTD, next_BT) -> jax.Array:
        """Negative log-likelihood (B, T) of the next tokens, fp32 nats.

        With `vocab_chunks` C > 1 at most (B, T, V / C) logits exist at a time, forward and backward. Chunk c holds the
        tokens v with v % C = c, so that each device keeps its part of a vocabulary sharded along `tensor`.
        """
        C, kernel_DV = self.vocab_chunks, self._head_DV().astype(self.dtype)
        kernel_CDV = jnp.moveaxis(kernel_DV.reshape(self.config.D, -1, C), 2, 0)

        @jax.checkpoint if C > 1 else (lambda f: f)
        def add(carry, chunk):
            peak, total, picked = carry
            c, kernel = chunk
            logits = self._capped(hidden_BTD, sharding.gathered(self.self_attention.mesh, dict(head=kernel))["head"])
            higher = jnp.maximum(peak, jax.lax.stop_gradient(jnp.max(logits, axis=-1)))
            total = total * jnp.exp(peak - higher) + jnp.sum(jnp.exp(logits - higher[..., None]), axis=-1)
            own = jnp.take_along_axis(logits, next_BT[..., None] // C, axis=-1)[..., 0]
            return (higher, total, jnp.where(next_BT % C == c, own, picked)), None

        zero_BT = jnp.zeros(next_BT.shape, jnp.float32)
        (peak, total, picked), _ = jax.lax.scan(add, (zero_BT - jnp.inf, zero_BT, zero_BT), (jnp.arange(C), kernel_CDV))
        return peak + jnp.log(total) - picked

    def _head_DV(self):
        return self.embedding[...].T if self.config.tied_embedding else self.head[...]

    def _capped(self, hidden_BTD, kernel_DV):
        return softcap(linear(hidden_BTD, kernel_DV, out_dtype=jnp.float32), self.config.final_softcap)

    def _embed(self, tokens_BT):
        x = jnp.take(self.embedding[...], tokens_BT, axis=0).astype(self.dtype)
        # The factor is rounded to the compute dtype, as in training: in bf16 sqrt(3584) = 59.87 becomes 59.75.
        return x * jnp.asarray(self.config.D**0.5, self.dtype) if self.config.scaled_embedding else x


def at(stacked, i: int):
    """Layer `i` of a stack."""
    return jax.tree.map(lambda x: x[i], stacked)


def unstack(params: dict) -> dict:
    """Parameters with unstacked layers: layer i is `params["layers"][i]`."""
    layers = params["layers"]
    return params | {"layers": {i: at(layers, i) for i in range(len(layers["attention"]["q"]))}}


def positions(T: int, segments_BT=None) -> jax.Array:
    """(B or 1, T): the position of each token in its sequence."""
    slot_1T = jnp.arange(T)[None]
    if segments_BT is None:
        return slot_1T
    begins_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], [(0, 0), (1, 0)])
    return slot_1T - jax.lax.cummax(jnp.where(begins_BT, slot_1T, 0), axis=1)


def decode_masks(position_X, prompt_mask_BRP, step, T: int, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Attention masks of one new token per sample: (B, R or 1, P) for the prompt's slots and (T,) for its own."""
    B, _, P = prompt_mask_BRP.shape
    in_use = jnp.arange(T) <= step
    of_prompt = prompt_mask_BRP & within(position_X.reshape(B, -1, 1), jnp.arange(P), window)
    return of_prompt, in_use & within(step, jnp.arange(T), window)


def linear(x: jax.Array, kernel, axes: int = 1, out_dtype=None) -> jax.Array:
    """Contracts the last `axes` axes of `x` with the first `axes` axes of `kernel`, in the dtype of `x`.

    Computed as a product of two matrices: in the backward pass of the higher-rank product, XLA's CPU backend spends
    more time on layout copies than on multiplying (2.7 times as long for an MLP of D 96, F 256).
    """
    kernel = kernel[...].astype(x.dtype)
    lead, inner, out = x.shape[: x.ndim - axes], math.prod(x.shape[x.ndim - axes :]), kernel.shape[axes:]
    y = jnp.matmul(x.reshape(-1, inner), kernel.reshape(inner, -1), preferred_element_type=out_dtype)
    return y.reshape(*lead, *out)


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """Truncated-normal parameter of standard deviation fan_in**-0.5; fp32 master copy."""
    scale = fan_in**-0.5
    return nnx.Param(scale * jax.random.truncated_normal(rngs.params(), -3, 3, shape, jnp.float32))


class Model(NamedTuple):
    """A decoder without its parameters: `bind(params)` is the module, `params` a nested dict of arrays.

    `on(mesh=other)` is the same model for arrays on another mesh, `on(config=other, mesh=...)` one of another shape.
    """

    config: ModelConfig
    graphdef: nnx.GraphDef
    graphdef_unstacked: nnx.GraphDef
    dtype: jnp.dtype
    on: Callable[..., "Model"]

    def bind(self, params) -> Decoder:
        """The module with parameters from `init` or `unstack`."""
        return nnx.merge(self.graphdef_unstacked if 0 in params["layers"] else self.graphdef, params)


@cache
def build(
    config: ModelConfig,
    *,
    dtype="float32",
    remat: str = "none",
    vocab_chunks: int = 1,
    attention: str = "auto",
    mesh: Mesh | None = None,
) -> Model:
    """The model without parameters. Nothing is allocated; equal arguments give the same object.

    Args:
      dtype: compute dtype, of activations and of cast weights.
      remat: rematerialization policy, one of REMAT.
      vocab_chunks: number of chunks of the vocabulary in `next_token_nll`.
      attention: one of `backends.BACKENDS`.
      mesh: mesh on which the model runs, which kernels must know; None for a single device.

    Raises:
      UserError: an unknown policy or backend, or a vocabulary that does not divide into the chunks.
    """
    if remat not in REMAT:
        raise UserError(f"model.remat={remat!r}: choose {', '.join(REMAT)}")
    if vocab_chunks < 1 or config.V % vocab_chunks:
        raise UserError(f"model.vocab_chunks={vocab_chunks} does not divide the vocabulary of {config.V}")
    dtype, self_attention = jnp.dtype(dtype), SelfAttention(attention, mesh)
    make = partial(Decoder, config, dtype, remat, vocab_chunks, self_attention)
    graphdef = lambda stacked: nnx.split(nnx.eval_shape(lambda: make(stacked, rngs=nnx.Rngs(0))))[0]
    on = partial(build, config=config, dtype=dtype, remat=remat, vocab_chunks=vocab_chunks, attention=attention)
    return Model(config, graphdef(stacked=True), graphdef(stacked=False), dtype, on)


def init(config: ModelConfig, key: jax.Array) -> dict:
    """Random fp32 parameters as a nested dict. Adapters begin as ones that add nothing."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=key))))
