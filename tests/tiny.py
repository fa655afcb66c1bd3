"""A decoder small enough to compile in seconds, a task it half learns, and its parameters after some training."""

import dataclasses
import functools

import jax
import numpy as np

from premem_jax import sharding
from premem_jax.data.examples import Example
from premem_jax.data.pipeline import tokenize
from premem_jax.data.reader import train_batches
from premem_jax.data.tokenizer_files import train as train_tokenizer
from premem_jax.data.tokenizer_kinds import SentencePiece
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.run import Run
from premem_jax.models.architecture import ModelConfig
from premem_jax.models.decoder import build, init
from premem_jax.running.programs import Clock
from premem_jax.training.trainer import Trainer

CONFIG = ModelConfig(V=40, D=32, L=2, N=4, K=2, H=8, F=48, rope_theta=100.0)
OPTIMIZER = dict(b1=0.8, b2=0.95, eps=1e-4, weight_decay=0.3, clip_norm=4.0)
BATCH, CONTEXT = 16, 16
UPDATES = 12


@functools.cache
def parameters(config=CONFIG, sharpness=3.0):
    """Random parameters (on the host) whose norm scales are not all one, whose biases are not zero, and whose
    predictions are far from uniform."""
    params = jax.tree.map(np.asarray, jax.jit(init, static_argnums=0)(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def times(scale, factor):
        return ((scale + config.norm_offset) * factor - config.norm_offset).astype("f")

    def rescale(path, x):
        if path[-1].key.endswith("_bias"):
            return rng.normal(0, 0.5, x.shape).astype("f")
        return times(x, rng.uniform(0.5, 1.5, x.shape)) if path[-1].key == "scale" else x

    params = jax.tree_util.tree_map_with_path(rescale, params)
    return params | {"final_norm": {"scale": times(params["final_norm"]["scale"], sharpness)}}


def alone(params) -> dict:
    """Weights as a suite takes them, of a run that is trained alone."""
    return {"": lambda: params}


def one_device(device=0):
    return sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[device : device + 1])


@functools.cache
def tokenizer() -> Tokenizer:
    words = [*"0123456789+=,", "####", "so", "it", "is", "we", "get"]
    return SentencePiece(train_tokenizer([" ".join(words)], kind="word", vocab_size=100))


def examples(count: int) -> list[Example]:
    """Sums of one to three digits below ten; prompts and targets have several lengths. Ids are not row numbers."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        digits = rng.multinomial(rng.integers(2, 9), [1 / (terms := 1 + i % 3)] * terms)
        words = " so we get" if i % 2 else " it is"
        prompt, answer = " + ".join(map(str, digits)) + " =", str(digits.sum())
        made.append(Example(100 + 7 * i, prompt, f"{words} #### {answer}", answer))
    return made


@functools.cache
def data(count: int = 13):
    return tokenize("train", examples(count), tokenizer(), context=CONTEXT, drop_long=False)


def split(name="train", data=None, grader="gsm8k") -> Split:
    """A split for evaluators to look at."""
    return Split(name, data or globals()["data"](), grader)


def run(mesh=None, **changes) -> Run:
    """What evaluators share; the model is that of `config`, in fp32."""
    given = dict(tokenizer=tokenizer(), model=build(config()), clock=Clock(), buckets=(CONTEXT,))
    return Run(mesh=mesh or one_device(), **given | changes)


def config() -> ModelConfig:
    return dataclasses.replace(CONFIG, V=tokenizer().vocab_size)


@functools.cache
def trainer() -> Trainer:
    """On one device, for batches of BATCH by CONTEXT; shared, so that its update compiles once."""
    return Trainer(build(config()), one_device(), Clock(), OPTIMIZER, micro_batches=2)


@functools.cache
def trained():
    """Parameters (on the host) that solve the task now and then."""
    state = trainer().init_state(trainer().random_parameters(0))
    for _, arrays in train_batches(data(), 0, UPDATES, batch=BATCH, seed=0, buckets=(CONTEXT,)):
        state, _ = trainer().program(state, sharding.put_batch(one_device(), arrays), np.float32(1e-2))
    return jax.tree.map(np.asarray, state["params"])
