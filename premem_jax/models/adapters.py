"""LoRA adapters (Hu et al., arXiv 2106.09685) in a tree of parameters.

Beside a matrix `q` (..., inputs, outputs) stand `q_A` (..., inputs, rank) and `q_B` (..., rank, outputs). A tree that
has adapters trains them alone: everything else is frozen, and held in the compute dtype.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from premem_jax.models.architecture import Lora

A, B = "_A", "_B"


def random(rngs, lora: Lora, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """New adapters of one matrix, fp32: A uniform in ± fan_in**-0.5 as in `peft`, and B zero."""
    bound = math.prod(inputs) ** -0.5
    shape = (*inputs, lora.rank)
    return (
        jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound),
        jnp.zeros((lora.rank, *outputs), jnp.float32),
    )


def split(params: Mapping) -> tuple[dict, dict]:
    """What is trained, and what is frozen: the adapters and the rest, or everything and nothing."""
    leaves = flatten_dict(params)
    trained = {path: leaf for path, leaf in leaves.items() if path[-1].endswith((A, B))} or leaves
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: Mapping, frozen: Mapping) -> dict:
    """The whole tree; the inverse of `split`."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen)) if frozen else trained


def frozen_in(dtype, params: Mapping) -> dict:
    """`params` with what is frozen cast to `dtype`."""
    trained, frozen = split(params)
    return join(trained, jax.tree.map(lambda x: x.astype(dtype), frozen))


def merged(lora: Lora | None, params: Mapping) -> dict:
    """fp32 parameters without adapters, of a model that computes the same.

    Layers may be stacked, members too, or neither.
    """
    leaves = flatten_dict(params)
    whole = {}
    for path, W in leaves.items():
        if path[-1].endswith((A, B)):
            continue
        whole[path] = W.astype(jnp.float32)
        of = lambda side, path=path: (*path[:-1], f"{path[-1]}{side}")
        if of(A) in leaves:
            a, b = leaves[of(A)], leaves[of(B)]
            product = lambda a, b: jnp.tensordot(a, b, 1)
            for _ in range(a.ndim + b.ndim - 2 - W.ndim):  # leading axes, which all three have
                product = jax.vmap(product)
            whole[path] += lora.scale * product(a, b)
    return unflatten_dict(whole)
