"""The programs of `finetune` and `preference`, lowered for given devices from shapes alone.

They are the update, `train`, and the largest program of each type of evaluator that is `planned`. Preference training
has some of its own (`OWN`): the reference pass, and the split of an update by source, `sources` and `probe`.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from premem_jax import sharding
from premem_jax.data.packing import Packing
from premem_jax.evaluators import find
from premem_jax.evaluators.base import Evaluator
from premem_jax.evaluators.planned import Planned
from premem_jax.grading.grader import grader_of
from premem_jax.models import costs
from premem_jax.models.architecture import ModelConfig, lora_of, preset
from premem_jax.models.decoder import Model, build
from premem_jax.running.programs import Clock
from premem_jax.running.topology import Topology
from premem_jax.sampling.sampler import to_decode
from premem_jax.tasks import task as tasks
from premem_jax.training import influence
from premem_jax.training.losses import NEXT_TOKEN, needed
from premem_jax.training.measures import pair_measures
from premem_jax.training.objectives import Responses, objective
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer

OWN = ("reference", "sources", "probe")
RESPONSES = 2  # of a pair


def evaluators_of(config) -> dict[str, type[Evaluator]]:
    """The evaluators of `config` that are planned, by the names of their programs."""
    kinds = [find(options.type) for options in config.evals.values()]
    return {kind.planned: kind for kind in kinds if kind.planned}


def names_of(config) -> tuple[str, ...]:
    """The programs of `config`, by name."""
    own = () if "preference" not in config else OWN if config.influence.every else OWN[:1]
    return ("train", *own, *evaluators_of(config))


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


def rows(config, mesh: Mesh) -> tuple[int, int]:
    """Rows of an update, and the tokens of the longest ones by the config; a batch of long examples may need more."""
    packing = Packing.on(mesh, config.train.packed_tokens, config.train.batch, config.train.micro_batches)
    return packing.largest(sequences(config), longest(config))


def sequences(config) -> int:
    """Number of sequences of an update."""
    return config.train.batch * (RESPONSES if "preference" in config else 1)


def mesh_of(config, mesh: Mesh, name: str) -> Mesh:
    """The mesh of the program `name`."""
    evaluator = evaluators_of(config).get(name)
    decodes = evaluator is not None and evaluator.layout == "decode"
    return sharding.decode_mesh(mesh, config.mesh.decode_tensor) if decodes else mesh


def parts(config, mesh: Mesh, name: str) -> int:
    """Number of batch shards of the program `name`."""
    return sharding.parts(mesh_of(config, mesh, name))


def cost(config, topology: Topology, mesh: Mesh, name: str) -> costs.Cost:
    """Cost of one call of the program `name`."""
    layout, shape, T = _layout(config, mesh, name), shape_of(config), longest(config)
    X, of_row = rows(config, mesh)
    update = costs.train(shape, layout, topology.slices, B=X, T=of_row, micro_batches=config.train.micro_batches)
    if name == "train":
        return update
    if name == "sources":
        return update.times(RESPONSES)
    if name == "reference":
        return costs.score(shape, layout, B=sequences(config), T=T)
    if name == "probe":
        return costs.score(shape, layout, B=_probed(config, mesh), T=T).times(PASSES)
    evaluator = evaluators_of(config)[name]
    return evaluator.cost(largest(config, evaluator), shape, layout, T)


def batch_costs(config, mesh: Mesh, name: str) -> dict[str, costs.Cost]:
    """Cost of a batch of each evaluator whose program is `name`, by its name in the config."""
    case, kind = (shape_of(config), _layout(config, mesh, name), longest(config)), evaluators_of(config).get(name)
    mine = {key: options.to_dict() for key, options in config.evals.items() if find(options.type) is kind}
    return {key: kind.cost(options, *case) for key, options in mine.items()}


def _layout(config, mesh: Mesh, name: str) -> costs.Layout:
    return costs.Layout(*(mesh_of(config, mesh, name).shape[axis] for axis in sharding.AXES))


def lower(config, mesh: Mesh, name: str) -> tuple[jax.stages.Lowered, int]:
    """The program `name` lowered for the devices of `mesh`, and the bytes per chip of the train state beside its
    arguments.

    These are the parts of the train state that it does not use: the moments while scoring, everything while sampling
    from a copy of the weights. On GPUs attention is the reference, which takes no less memory than cuDNN's: that is not
    lowered where there is no GPU.
    """
    options = config.model.to_dict()
    options = {key: options[key] for key in ("remat", "vocab_chunks", "attention")}
    if mesh.devices.flat[0].platform == "gpu" and options["attention"] == "auto":
        options["attention"] = "reference"
    shape, T = shape_of(config), longest(config)
    model = build(shape, dtype=config.compute_dtype, mesh=mesh, **options)
    array = lambda dtype, *shape: sharding.abstract_batch(mesh, shape, dtype)
    texts = lambda *shape: {"tokens": array(jnp.int32, *shape), "weights": array(jnp.float32, *shape)}
    loss, batch = NEXT_TOKEN, texts(*rows(config, mesh))
    if "preference" in config or batch["tokens"].shape[0] < sequences(config):
        batch["segments"] = array(jnp.int32, *rows(config, mesh))
    if "preference" in config:
        asked = objective(config.preference.objective, config.preference.to_dict())
        loss = Responses(asked, gate=config.preference.gate)
        each = config.train.batch, RESPONSES
        batch |= {"responses": array(jnp.int32, *each), "reference": array(jnp.float32, *each)}
    trainer = Trainer(model, mesh, Clock(), config.optimizer.to_dict(), config.train.micro_batches, loss)
    state = sharding.abstract(mesh, trainer.abstract_state)
    text = needed(loss, batch)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    if name == "train":
        return _lower(mesh, trainer.program.jitted, (state, text, rate)), 0
    if name in OWN:
        return _own(config, mesh, name, model, loss, state, text, rate, texts)
    evaluator, params, beside = evaluators_of(config)[name], weights(state), _bytes(state)
    if evaluator.layout == "decode":
        mesh = mesh_of(config, mesh, name)
        model = model.on(mesh=mesh)
        params = sharding.abstract(mesh, jax.eval_shape(lambda p: to_decode(model.dtype, p), params))
    else:
        beside -= _bytes(params)
    planned = Planned(shape, T, mesh, model, params, grader_of(tasks.find(config.data.task).GRADER))
    function, args = evaluator.program(largest(config, evaluator), planned)
    return _lower(mesh, jax.jit(function), args), beside


PASSES = 10  # forward passes of a probe: one, two for each of four sources, and one for what happens


def _probed(config, mesh: Mesh) -> int:
    """Responses of a probe, to which the batch is filled up."""
    return -(-(config.influence.prompts or config.data.train) // sharding.parts(mesh)) * sharding.parts(mesh)


def _own(config, mesh: Mesh, name: str, model: Model, loss, state, text, rate, texts) -> tuple[jax.stages.Lowered, int]:
    """`lower` for a program of preference training."""
    params, trained = weights(state), state["params"]
    moments = _bytes(state) - _bytes(params)
    if name == "reference":
        pairs = texts(sequences(config), longest(config))
        return _lower(mesh, jax.jit(partial(pair_measures, model)), (params, *pairs.values())), moments
    model = influence.with_forward_mode(model, mesh)
    split = partial(influence.next_update, model, loss, config.train.micro_batches, **config.optimizer.to_dict())
    layout = jax.tree.map(lambda x: x.sharding, trained)
    sources = dict.fromkeys((*influence.SOURCES, "momentum", "decay"), layout)
    if name == "sources":
        return _lower(mesh, jax.jit(split, out_shardings=sources), (state, text, rate)), 0
    half = lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype, sharding=x.sharding)
    directions = {source: jax.tree.map(half, trained) for source in sources}
    seen = texts(_probed(config, mesh), longest(config))
    return _lower(mesh, jax.jit(partial(influence.effects, model)), (params, directions, *seen.values())), moments


def _lower(mesh: Mesh, jitted, args) -> jax.stages.Lowered:
    platform = {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, "tpu")
    return jitted.trace(*args).lower(lowering_platforms=(platform,))


def _bytes(tree) -> int:
    """Bytes on one device."""
    of = lambda x: jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape))
    return sum(map(of, jax.tree.leaves(tree)))
