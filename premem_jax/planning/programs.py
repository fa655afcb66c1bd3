"""The compiled programs of a study, on shapes alone: what `finetune` would run on the devices that it is given."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from premem_jax import sharding
from premem_jax.data import tasks
from premem_jax.evaluators.accuracy import sample_and_grade
from premem_jax.evaluators.suite import to_decode
from premem_jax.models.config import ModelConfig, preset
from premem_jax.models.decoder import Model, build
from premem_jax.planning import costs
from premem_jax.planning.topology import Topology
from premem_jax.programs import Clock
from premem_jax.sampling.rounds import continuing, round_tokens
from premem_jax.scoring.answers import answer_bytes, vocabulary
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
    likelihood, accuracy = _largest(config, "likelihood"), _largest(config, "accuracy")
    return Sizes(
        dict(B=config.train.batch, T=T, micro_batches=config.train.micro_batches),
        dict(B=likelihood.batch, T=T),
        dict(B=accuracy.batch, R=accuracy.samples, P=T, T=accuracy.max_new_tokens),
    )


def _largest(config, kind: str):
    """The evaluator of a type that has the largest arrays."""
    size = lambda e: e.batch * e.get("samples", 1) * e.get("max_new_tokens", 1)
    return max((e for e in config.evals.values() if e.type == kind), key=size)


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


def rows(config, mesh, name: str) -> int:
    """Into how many parts the batch of the program `name` is cut."""
    return sharding.rows(sharding.decode_mesh(mesh, config.mesh.decode_tensor) if name == "sample" else mesh)


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
    if name == "sample":
        mesh = sharding.decode_mesh(mesh, config.mesh.decode_tensor)
        return _lower(*_sample(config, model.on(mesh=mesh), mesh, state["params"])), _bytes(state)
    text = {"tokens": jnp.int32, "weights": jnp.float32}
    text = {key: sharding.abstract_batch(mesh, (batch["B"], batch["T"]), dtype) for key, dtype in text.items()}
    if name == "score":
        program = jax.jit(partial(target_nll, model))
        return _lower(program, (state["params"], *text.values())), _bytes(state) - _bytes(state["params"])
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    return _lower(trainer.program.jitted, (state, text, rate)), 0


def _sample(config, model: Model, mesh, params):
    """The sampling program of the accuracy evaluators that takes most memory, their last round, and its arguments."""
    batch, rules = sizes(config).sample, tasks.RULES[config.data.task]
    accuracy = _largest(config, "accuracy")
    *before, T = round_tokens(accuracy.max_new_tokens, accuracy.first_round)
    begun, R = sum(before), 1 if before else batch["R"]
    B = continuing(batch["B"], batch["R"]) if before else batch["B"]
    half = jax.eval_shape(partial(to_decode, model.dtype), params)
    # Real vocabularies are of this size; their bytes are in no file here, and what they are changes no shape but a few.
    tokens = [bytes([i]) for i in range(256)] + [b" " * 128] + [b""] * (model.config.V - 257)
    replicated = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), tree
    )
    answers = answer_bytes([b"0"] * B, rules)
    integers = lambda *shape: sharding.abstract_batch(mesh, (B, *shape), jnp.int32)
    args = (
        sharding.abstract(mesh, half),
        dict(
            tokens=integers(batch["P"] + begun),
            prompt_length=integers(),
            ids=integers(),
            first=integers(),
            begun=integers(begun),
        ),
        jax.tree.map(lambda x: sharding.abstract_batch(mesh, x.shape, x.dtype), answers),
        replicated(vocabulary(tokens, rules)),
        replicated(jax.eval_shape(jax.random.key, 0)),
    )
    settings = dict(samples=R, max_new_tokens=T, temperature=accuracy.temperature, top_p=accuracy.top_p)
    return jax.jit(partial(sample_and_grade, model, rules, eos_id=0, **settings)), args


def _lower(jitted, args) -> jax.stages.Lowered:
    return jitted.trace(*args).lower(lowering_platforms=("tpu",))


def _bytes(tree) -> int:
    """Of one device."""
    of = lambda x: jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape))
    return sum(map(of, jax.tree.leaves(tree)))
