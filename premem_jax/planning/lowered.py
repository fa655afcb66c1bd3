"""The programs of `finetune`, lowered for given devices from shapes alone.

They are the update, `train`, and the largest program of each type of evaluator that is `planned`.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.evaluators import find
from premem_jax.evaluators.base import Evaluator
from premem_jax.evaluators.planned import Planned
from premem_jax.grading.grader import grader_of
from premem_jax.models import costs
from premem_jax.models.architecture import ModelConfig, lora_of, preset
from premem_jax.models.decoder import build
from premem_jax.running.programs import Clock
from premem_jax.running.topology import Topology
from premem_jax.sampling.sampler import to_decode
from premem_jax.tasks import task as tasks
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer


def evaluators_of(config) -> dict[str, type[Evaluator]]:
    """The evaluators of `config` that are planned, by the names of their programs."""
    kinds = [find(options.type) for options in config.evals.values()]
    return {kind.planned: kind for kind in kinds if kind.planned}


def largest(config, evaluator: type[Evaluator]) -> dict:
    """The options of the evaluator of a type that has the largest arrays."""
    mine = [options.to_dict() for options in config.evals.values() if find(options.type) is evaluator]
    return max(mine, key=evaluator.size)


def shape_of(config) -> ModelConfig:
    """The shape of the model, with its adapters."""
    return preset(config.model.preset, lora=lora_of(**config.lora))


def longest(config) -> int:
    """Number of tokens of the longest sequences."""
    return max(config.data.buckets, default=config.data.context)


def mesh_of(config, mesh: Mesh, name: str) -> Mesh:
    """The mesh of the program `name`."""
    decodes = name != "train" and evaluators_of(config)[name].layout == "decode"
    return sharding.decode_mesh(mesh, config.mesh.decode_tensor) if decodes else mesh


def parts(config, mesh: Mesh, name: str) -> int:
    """Number of batch shards of the program `name`."""
    return sharding.parts(mesh_of(config, mesh, name))


def cost(config, topology: Topology, mesh: Mesh, name: str) -> costs.Cost:
    """Cost of one call of the program `name`."""
    layout = costs.Layout(*(mesh_of(config, mesh, name).shape[axis] for axis in sharding.AXES))
    shape, T = shape_of(config), longest(config)
    if name == "train":
        sizes = dict(B=config.train.batch, T=T, micro_batches=config.train.micro_batches)
        return costs.train(shape, layout, topology.slices, **sizes)
    evaluator = evaluators_of(config)[name]
    return evaluator.cost(largest(config, evaluator), shape, layout, T)


def lower(config, mesh: Mesh, name: str) -> tuple[jax.stages.Lowered, int]:
    """The program `name` lowered for TPUs, and the bytes per chip of the train state beside its arguments.

    These are the parts of the train state that it does not use: the moments while scoring, everything while sampling
    from a copy of the weights.
    """
    options = config.model.to_dict()
    options = {key: options[key] for key in ("remat", "vocab_chunks", "attention")}
    shape, T = shape_of(config), longest(config)
    model = build(shape, dtype=config.compute_dtype, mesh=mesh, **options)
    trainer = Trainer(model, mesh, Clock(), config.optimizer.to_dict(), config.train.micro_batches)
    state = sharding.abstract(mesh, trainer.abstract_state)
    if name == "train":
        types = {"tokens": jnp.int32, "weights": jnp.float32}
        text = {key: sharding.abstract_batch(mesh, (config.train.batch, T), dtype) for key, dtype in types.items()}
        rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
        return _lower(trainer.program.jitted, (state, text, rate)), 0
    evaluator, params, beside = evaluators_of(config)[name], weights(state), _bytes(state)
    if evaluator.layout == "decode":
        mesh = mesh_of(config, mesh, name)
        model = model.on(mesh=mesh)
        params = sharding.abstract(mesh, jax.eval_shape(lambda p: to_decode(model.dtype, p), params))
    else:
        beside -= _bytes(params)
    planned = Planned(shape, T, mesh, model, params, grader_of(tasks.find(config.data.task).GRADER))
    function, args = evaluator.program(largest(config, evaluator), planned)
    return _lower(jax.jit(function), args), beside


def _lower(jitted, args) -> jax.stages.Lowered:
    return jitted.trace(*args).lower(lowering_platforms=("tpu",))


def _bytes(tree) -> int:
    """Bytes on one device."""
    of = lambda x: jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape))
    return sum(map(of, jax.tree.leaves(tree)))
