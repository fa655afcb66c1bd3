"""The compiled programs of a study, on shapes alone: what `finetune` would run on the devices that it is given."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from premem_jax import sharding
from premem_jax.models.config import ModelConfig, preset
from premem_jax.models.decoder import build
from premem_jax.planning import costs
from premem_jax.planning.topology import Topology
from premem_jax.programs import Clock
from premem_jax.sampling.sampler import sample
from premem_jax.scoring.likelihood import target_nll
from premem_jax.training.trainer import Trainer

NAMES = ("train", "score", "sample")


class Sizes(NamedTuple):
    """Batch shapes that a config leads to: its longest sequences and its largest evaluation batches."""

    train: dict  # B, T, micro_batches
    score: dict  # B, T
    sample: dict  # B, R, P, T


def sizes(config) -> Sizes:
    """Batch shapes of `config`; evaluators of one type are planned as the one with the most rows."""
    T = max(config.data.buckets, default=config.data.context)
    of_type = lambda kind: [options for options in config.evals.values() if options.type == kind]
    likelihood = max(of_type("likelihood"), key=lambda e: e.batch)
    accuracy = max(of_type("accuracy"), key=lambda e: e.batch * e.samples * e.max_new_tokens)
    return Sizes(
        dict(B=config.train.batch, T=T, micro_batches=config.train.micro_batches),
        dict(B=likelihood.batch, T=T),
        dict(B=accuracy.batch, R=accuracy.samples, P=T, T=accuracy.max_new_tokens),
    )


def shape(config) -> ModelConfig:
    """The model of a config."""
    return preset(config.model.preset)


def cost(config, topology: Topology, mesh, name: str) -> costs.Cost:
    """Arithmetic and traffic of one call of the program `name`."""
    layout = lambda mesh: costs.Layout(*(mesh.shape[axis] for axis in sharding.AXES))
    batch = getattr(sizes(config), name)
    if name == "train":
        return costs.train(shape(config), layout(mesh), topology.slices, **batch)
    if name == "score":
        return costs.score(shape(config), layout(mesh), **batch)
    return costs.sample(shape(config), layout(sharding.decode_mesh(mesh, config.mesh.decode_tensor)), **batch)


def lower(config, mesh, name: str) -> tuple[jax.stages.Lowered, int]:
    """The program `name` lowered for TPUs, and the bytes per chip that lie beside its arguments while it runs.

    Those are the parts of the train state that it does not use: the moments while scoring, all of it while sampling
    from a copy of the weights.
    """
    options = config.model.to_dict()
    options = {key: options[key] for key in ("remat", "vocab_chunks", "attention")}
    model = build(shape(config), dtype=config.compute_dtype, mesh=mesh, **options)
    trainer = Trainer(model, mesh, Clock(), config.optimizer.to_dict(), config.train.micro_batches)
    state = sharding.abstract(mesh, trainer.abstract_state)
    batch = getattr(sizes(config), name)
    rows = lambda mesh, *shape, dtype: sharding.abstract_batch(mesh, shape, dtype)
    if name == "sample":
        mesh = sharding.decode_mesh(mesh, config.mesh.decode_tensor)
        B, P = batch["B"], batch["P"]
        cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype), trainer.abstract_state["params"])
        args = (
            sharding.abstract(mesh, cast),
            rows(mesh, B, P, dtype=jnp.int32),
            rows(mesh, B, dtype=jnp.int32),
            rows(mesh, B, dtype=jnp.int32),
            jax.ShapeDtypeStruct((), jax.eval_shape(jax.random.key, 0).dtype, sharding=sharding.replicated(mesh)),
        )
        static = dict(samples=batch["R"], max_new_tokens=batch["T"], temperature=0.8, top_p=0.95, eos_id=1)
        return _lower(jax.jit(partial(sample, model.on(mesh=mesh), **static)), args), _bytes(state)
    text = {"tokens": rows(mesh, batch["B"], batch["T"], dtype=jnp.int32)}
    text["weights"] = rows(mesh, batch["B"], batch["T"], dtype=jnp.float32)
    if name == "score":
        program = jax.jit(partial(target_nll, model))
        return _lower(program, (state["params"], *text.values())), _bytes(state) - _bytes(state["params"])
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    return _lower(trainer.program.jitted, (state, text, rate)), 0


def _lower(jitted, args) -> jax.stages.Lowered:
    return jitted.trace(*args).lower(lowering_platforms=("tpu",))


def _bytes(tree) -> int:
    """Of one device."""
    of = lambda x: jnp.dtype(x.dtype).itemsize * int(jnp.prod(jnp.array(x.sharding.shard_shape(x.shape))))
    return sum(map(of, jax.tree.leaves(tree)))
