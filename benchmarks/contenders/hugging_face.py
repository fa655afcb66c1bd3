"""`transformers` on torch: a plain training loop, `generate`, and perplexities.

python -m benchmarks.contenders.hugging_face FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks import workload
from benchmarks.contenders.turns import serve
from benchmarks.workload import Workload

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Tasks:
    def __init__(self, folder: Path):
        self._folder, self._given = folder, Workload(folder)

    def _model(self, dtype: str | None = None):
        return AutoModelForCausalLM.from_pretrained(self._folder, dtype=dtype or self._given.dtype).to(DEVICE).eval()

    def _batch(self, arrays: dict) -> dict[str, torch.Tensor]:
        """A right-padded batch of the workload; what has no weight is no label."""
        tokens, weights = (torch.from_numpy(arrays[name]).long() for name in ("tokens", "weights"))
        batch = dict(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=tokens.where(weights > 0, -100))
        return {name: x.to(DEVICE) for name, x in batch.items()}

    def train(self):
        model, given, step = self._model("float32").train(), workload.OPTIMIZER, 0
        betas = (given["b1"], given["b2"])
        rest = dict(eps=given["eps"], weight_decay=given["weight_decay"], fused=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=workload.LEARNING_RATE, betas=betas, **rest)
        narrow = self._given.dtype != "float32"

        def turn() -> list[float]:
            nonlocal step
            losses = []
            for _ in range(workload.UPDATES):
                with torch.autocast(DEVICE.type, getattr(torch, self._given.dtype), enabled=narrow):
                    loss = model(**self._batch(self._given.batch(step)), use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), given["clip_norm"])
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
                step += 1
            return torch.stack(losses).tolist()

        return turn

    def _generate(self, repeat: int, **settings):
        """`generate` on left-padded prompts, each of them `repeat` times."""
        model, prompts = self._model(), self._given.prompts
        longest = max(map(len, prompts))
        left_padded = [torch.from_numpy(np.pad(prompt, (longest - len(prompt), 0))).long() for prompt in prompts]
        tokens = torch.stack(left_padded).repeat_interleave(repeat, dim=0).to(DEVICE)
        settings |= dict(max_new_tokens=workload.NEW_TOKENS, eos_token_id=None, pad_token_id=0)

        def turn() -> list:
            torch.manual_seed(0)
            with torch.inference_mode():
                out = model.generate(tokens, attention_mask=(tokens != 0).long(), **settings)
            return out[:, longest:].reshape(len(prompts), -1, workload.NEW_TOKENS).tolist()

        return turn

    def sample(self, repeat=1, top_p=1.0, **settings):
        tempered = dict(do_sample=True, temperature=workload.TEMPERATURE, top_p=top_p, top_k=0)
        if repeat == 1:
            tempered["num_return_sequences"] = workload.SAMPLES
        return self._generate(repeat, **tempered, **settings)

    def sample_static(self):
        return self.sample(repeat=workload.SAMPLES, cache_implementation="static")

    def sample_top_p(self):
        return self.sample(top_p=workload.TOP_P)

    def greedy(self):
        return self._generate(1, do_sample=False)

    def score(self, batch=workload.SCORE_BATCH):
        model, examples = self._model("float32"), self._given.examples
        narrow = self._given.dtype != "float32"

        def turn() -> list[float]:
            nll = []
            for first in range(0, len(examples), batch):
                part = examples[first : first + batch]
                arrays = self._batch(self._given.padded(part, sum(map(len, part[-1]))))
                labels = arrays.pop("labels")[:, 1:]
                with torch.inference_mode(), torch.autocast(DEVICE.type, getattr(torch, self._given.dtype), narrow):
                    logits = model(**arrays, use_cache=False).logits[:, :-1]
                losses = torch.nn.functional.cross_entropy(logits.float().mT, labels, reduction="none")
                nll.append(losses.sum(1) / (labels >= 0).sum(1))
            return torch.cat(nll).tolist()

        return turn

    def score_one_by_one(self):
        return self.score(batch=1)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    tasks = Tasks(Path(sys.argv[1]))
    names = ("train", "sample", "sample_static", "sample_top_p", "greedy", "score", "score_one_by_one")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    serve({name: getattr(tasks, name) for name in names}, versions)
