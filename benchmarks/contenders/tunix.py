"""`google-tunix`: its Llama, trainer, sampler and per-token log-probabilities. Has an environment of its own.

PYTHON -m benchmarks.contenders.tunix FOLDER
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl.common import compute_per_token_logps
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from benchmarks import workload
from benchmarks.contenders.turns import serve
from benchmarks.workload import Workload


class Ids:
    """What its sampler takes for a tokenizer: the text of a prompt is its number."""

    def __init__(self, prompts: list[np.ndarray]):
        self._prompts = prompts

    def encode(self, text: str) -> list[int]:
        return self._prompts[int(text)].tolist()

    def decode(self, ids: list[int]) -> str:
        return ""

    bos_id = pad_id = lambda self: 0
    eos_id = lambda self: -1


class Tasks:
    def __init__(self, folder: Path):
        self._folder, self._given = folder, Workload(folder)
        given = json.loads((folder / "config.json").read_text())
        self._config = ModelConfig(
            num_layers=given["num_hidden_layers"],
            vocab_size=given["vocab_size"],
            embed_dim=given["hidden_size"],
            hidden_dim=given["intermediate_size"],
            num_heads=given["num_attention_heads"],
            head_dim=given["head_dim"],
            num_kv_heads=given["num_key_value_heads"],
            rope_theta=given["rope_theta"],
            norm_eps=given["rms_norm_eps"],
            weight_tying=given["tie_word_embeddings"],
        )

    def _model(self, dtype: str | None = None):
        dtype = jnp.dtype(dtype or self._given.dtype)
        mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        return create_model_from_safe_tensors(str(self._folder), self._config, mesh, dtype)

    def train(self):
        given, step = dict(workload.OPTIMIZER), 0
        clip = optax.clip_by_global_norm(given.pop("clip_norm"))
        optimizer = optax.chain(clip, optax.adamw(workload.LEARNING_RATE, **given))
        trainer = PeftTrainer(self._model("float32"), optimizer, TrainingConfig(eval_every_n_steps=10**9))
        trainer = trainer.with_gen_model_input_fn(_inputs)
        update, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)

        def turn() -> list[float]:
            nonlocal step
            losses = []
            for _ in range(workload.UPDATES):
                batch = self._given.batch(step)
                losses.append(update(TrainingInput(batch["tokens"], batch["weights"]))[0])
                step += 1
            return np.array(losses).tolist()

        return turn

    def _sample(self, repeat: int, **settings):
        prompts = self._given.prompts
        longest = max(map(len, prompts))
        c, size = self._config, longest + workload.NEW_TOKENS
        sampler = Sampler(self._model(), Ids(prompts), CacheConfig(size, c.num_layers, c.num_kv_heads, c.head_dim))
        texts = [str(i) for i in range(len(prompts)) for _ in range(repeat)]
        settings |= dict(max_generation_steps=workload.NEW_TOKENS, max_prompt_length=longest, eos_tokens=[-1])

        def turn() -> list:
            tokens = sampler(texts, **settings).tokens
            return np.array(tokens).reshape(len(prompts), repeat, workload.NEW_TOKENS).tolist()

        return turn

    def sample(self, top_p=1.0):
        return self._sample(workload.SAMPLES, temperature=workload.TEMPERATURE, top_p=top_p, seed=0)

    def sample_top_p(self):
        return self.sample(top_p=workload.TOP_P)

    def greedy(self):
        return self._sample(1)

    def score(self):
        examples, (graphdef, state) = self._given.examples, nnx.split(self._model("float32"))

        def turn() -> list[float]:
            nll = []
            for first in range(0, len(examples), workload.SCORE_BATCH):
                part = examples[first : first + workload.SCORE_BATCH]
                # As in its RL: prompts padded on the left, completions on the right, each to a round length.
                lengths = [-(-max(len(example[i]) for example in part) // 32) * 32 for i in range(2)]
                prompts = np.stack([np.pad(prompt, (lengths[0] - len(prompt), 0)) for prompt, _ in part])
                targets = np.stack([np.pad(target, (0, lengths[1] - len(target))) for _, target in part])
                logps = compute_per_token_logps(graphdef, state, prompts, targets, pad_id=0, eos_id=-1)
                mask = targets != 0
                nll.append(-np.sum(np.asarray(logps) * mask, axis=1) / np.sum(mask, axis=1))
            return np.concatenate(nll).tolist()

        return turn


def _inputs(batch: TrainingInput) -> dict:
    mask = batch.input_tokens != 0
    positions, attention = build_positions_from_mask(mask), make_causal_attn_mask(mask)
    tokens = dict(input_tokens=batch.input_tokens, input_mask=batch.input_mask)
    return tokens | dict(positions=positions, attention_mask=attention)


if __name__ == "__main__":
    tasks = Tasks(Path(sys.argv[1]))
    names = ("train", "sample", "sample_top_p", "greedy", "score")
    versions = {name: metadata.version(name) for name in ("google-tunix", "jax", "flax")}
    serve({name: getattr(tasks, name) for name in names}, versions)
