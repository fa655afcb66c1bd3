"""This library, called as by its trainer and its evaluators. Takes a folder written by `make`.

python -m benchmarks.contenders.premem FOLDER
"""

import dataclasses
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from benchmarks import workload
from benchmarks.contenders.turns import serve
from benchmarks.workload import Workload
from premem_jax import sharding
from premem_jax.data.packing import Packing
from premem_jax.models import adapters, peft
from premem_jax.models.architecture import ModelConfig, lora_of, preset
from premem_jax.models.decoder import build, init, unstack
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import Checkpoint, save
from premem_jax.models.nll import target_nll
from premem_jax.running.programs import Clock, Program
from premem_jax.sampling.sampler import sample
from premem_jax.training.trainer import Trainer

# Settings of an update. Micro-batches of a small model fit CPU caches better; presets are trained as in the recipes.
SMALL = dict(micro_batches=4)
FULL = dict(micro_batches=1, remat="full", vocab_chunks=8)


def make(folder: str, name: str, dtype: str, data: str = "", examples: str = "0") -> None:
    """A Hugging Face folder of random weights, in a size of the workload or of a preset; with `data`, for a whole run.

    Rotary positions are those of tunix, whose Llama has a base of 10**6 whatever its config says (0.1.7).
    """
    config = ModelConfig(**workload.SIZES[name]) if name in workload.SIZES else preset(name)
    config, folder = dataclasses.replace(config, rope_theta=1e6, rope_scaling=None), Path(folder)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    save(folder, params, config, _mesh(), description=to_hf_config(config), files={}, dtype=dtype)
    (folder / "workload.json").write_text(json.dumps(dict(dtype=dtype)))
    fresh = jax.tree.map(np.asarray, _adapters(config))
    (folder / "adapter").mkdir()
    for file, content in peft.files(flatten_dict(fresh), _with_adapters(config), str(folder)).items():
        (folder / "adapter" / file).write_bytes(content)
    if data:
        from benchmarks import whole_run  # a GPU machine may be without the libraries that this needs

        whole_run.write(folder, data, int(examples), config.V)


def _with_adapters(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, lora=lora_of(**workload.LORA))


def _adapters(config: ModelConfig) -> dict:
    """New adapters, the same at each call."""
    return jax.jit(lambda key: adapters.split(init(_with_adapters(config), key))[0])(jax.random.key(1))


def _mesh() -> Mesh:
    return sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])


class Tasks:
    def __init__(self, folder: Path):
        self._folder, self._given = folder, Workload(folder)
        checkpoint = Checkpoint(folder)
        options = dict(SMALL if self._given.dtype == "float32" else FULL)
        self._micro_batches = options.pop("micro_batches")
        self._model = build(checkpoint.config, dtype=self._given.dtype, **options)
        self._load = lambda dtype: checkpoint.load(_mesh(), dtype)

    def train(self):
        return self._train(self._model, self._load("float32"), self._given.batch)

    def train_uncut(self):
        return self._train(self._model, self._load("float32"), self._given.uncut)

    def train_packed(self):
        """Examples share rows, which more micro-batches keep short, because attention is expensive here."""
        micro_batches = 2 * self._micro_batches
        packing = Packing.of(workload.PACKED_TOKENS, workload.TRAIN_ROWS, 1, micro_batches)

        def batch(step: int) -> dict[str, np.ndarray]:
            examples = self._given.picked(step)
            weights = lambda prompt, target: np.repeat([0, 1], [len(prompt), len(target)])
            one = lambda i: (np.concatenate(examples[i]), weights(*examples[i]))
            return packing.batch([sum(map(len, e)) for e in examples], one, full=len(examples), buckets=())

        return self._train(self._model, self._load("float32"), batch, micro_batches)

    def train_lora(self):
        model = self._model.on(config=_with_adapters(self._model.config), mesh=_mesh())
        params = adapters.join(_adapters(self._model.config), self._load(self._given.dtype))
        return self._train(model, params, self._given.batch)

    def _train(self, model, params, batch_of, micro_batches: int = 0):
        trainer = Trainer(model, _mesh(), Clock(), workload.OPTIMIZER, micro_batches or self._micro_batches)
        state, step = trainer.init_state(params), 0

        def turn() -> list[float]:
            nonlocal state, step
            losses = []
            for _ in range(workload.UPDATES):
                batch = sharding.put_batch(_mesh(), batch_of(step))
                state, metrics = trainer.program(state, batch, np.float32(workload.LEARNING_RATE))
                losses.append(metrics["loss"])
                step += 1
            return np.array(losses).tolist()

        return turn

    def sample(self, samples=workload.SAMPLES, temperature=workload.TEMPERATURE, top_p=1.0):
        params, prompts = jax.jit(unstack)(self._load(self._given.dtype)), self._given.prompts
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens = self._given.padded([(prompt, []) for prompt in prompts], -(-lengths.max() // 32) * 32)["tokens"]
        settings = dict(samples=samples, max_new_tokens=workload.NEW_TOKENS, temperature=temperature, top_p=top_p)
        program = Program(partial(sample, self._model, eos_ids=(-1,), **settings), Clock())
        ids, key = jnp.arange(len(prompts)), jax.random.key(0)
        return lambda: np.asarray(program(params, jnp.asarray(tokens), jnp.asarray(lengths), ids, key).tokens).tolist()

    def sample_top_p(self):
        return self.sample(top_p=workload.TOP_P)

    def greedy(self):
        return self.sample(samples=1, temperature=0.0)

    def score(self):
        params, program = self._load("float32"), Program(partial(target_nll, self._model), Clock())
        examples = self._given.examples  # shortest first

        def turn() -> list[float]:
            nll = []
            for first in range(0, len(examples), workload.SCORE_BATCH):
                part = examples[first : first + workload.SCORE_BATCH]
                length = -(-sum(map(len, part[-1])) // 32) * 32
                batch = sharding.put_batch(_mesh(), self._given.padded(part, length))
                nll.append(program(params, batch["tokens"], batch["weights"])[0])
            return np.concatenate(nll).tolist()

        return turn

    def finetune_in_one_round(self):
        return self.finetune(first_round=10**6)

    def finetune(self, first_round: int | None = None):
        sys.modules["torch"] = None  # where it is installed, TensorBoard's writer loads it, for 0.3 GB
        from benchmarks import whole_run
        from premem_jax.analysis.trace import read_trace
        from premem_jax.experiments import finetune
        from premem_jax.running import runtime

        config = whole_run.config(self._folder)
        if first_round:
            config.evals.accuracy.first_round = first_round
        runtime.prepare(config.cache)

        def turn() -> list[list]:
            with tempfile.TemporaryDirectory() as name:
                finetune.run(config, epath.Path(name) / "run")
                train = read_trace(Path(name) / "run" / "trace").split("train")
            return [train.nll.tolist(), train.accuracy.tolist()]

        return turn


if __name__ == "__main__":
    tasks = Tasks(Path(sys.argv[1]))
    names = ("train", "train_uncut", "train_packed", "train_lora", "sample", "sample_top_p", "greedy", "score")
    names += ("finetune", "finetune_in_one_round")
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    versions = dict(jax=jax.__version__, flax=flax.__version__, devices=devices)
    serve({name: getattr(tasks, name) for name in names}, versions)
