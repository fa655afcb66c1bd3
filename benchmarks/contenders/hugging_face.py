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
        """A right-padded batch of the workload; tokens without weight are no labels."""
        tokens, weights = (torch.from_numpy(arrays[name]).long() for name in ("tokens", "weights"))
        batch = dict(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=tokens.where(weights > 0, -100))
        return {name: x.to(DEVICE) for name, x in batch.items()}

    def train(self):
        return self._train(self._model("float32"), self._given.batch)

    def train_uncut(self):
        return self._train(self._model("float32"), self._given.uncut)

    def train_lora(self):
        from peft import PeftModel

        model = PeftModel.from_pretrained(self._model(), self._folder / "adapter", is_trainable=True)
        return self._train(model, self._given.batch)

    def _train(self, model, batch):
        model, step = model.train(), 0
        update = self._update(model, workload.OPTIMIZER)

        def turn() -> list[float]:
            nonlocal step
            losses = []
            for _ in range(workload.UPDATES):
                losses.append(update(batch(step), workload.LEARNING_RATE))
                step += 1
            return torch.stack(losses).tolist()

        return turn

    def _update(self, model, given: dict):
        """One step of AdamW on a batch, at a learning rate; returns the loss."""
        betas = (given["b1"], given["b2"])
        rest = dict(eps=given["eps"], weight_decay=given["weight_decay"], fused=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, betas=betas, **rest)
        narrow = self._given.dtype != "float32"

        def update(batch: dict, rate: float) -> torch.Tensor:
            optimizer.param_groups[0]["lr"] = rate
            with torch.autocast(DEVICE.type, getattr(torch, self._given.dtype), enabled=narrow):
                loss = model(**self._batch(batch), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, given["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return update

    def _generate(self, repeat: int, **settings):
        """`generate` on left-padded prompts, each of them `repeat` times."""
        model, prompts = self._model(), self._given.prompts
        settings |= dict(max_new_tokens=workload.NEW_TOKENS, eos_token_id=None)

        def turn() -> list:
            torch.manual_seed(0)
            return generate(model, prompts, repeat, **settings).tolist()

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

        return lambda: self._score(model, examples, batch, narrow)

    def _score(self, model, examples: list, batch: int, narrow: bool = False) -> list[float]:
        """Perplexities (in nats) of the targets of `examples`, shortest first."""
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

    def score_one_by_one(self):
        return self.score(batch=1)

    def finetune(self):
        """The paper's method: perplexities example by example, and `generate`, with texts graded one by one."""
        from benchmarks import whole_run
        from premem_jax.grading.reference import grade_bytes
        from premem_jax.grading.verdict import Verdict

        config = whole_run.config(self._folder)
        options = config.evals.accuracy
        settings = dict(max_new_tokens=options.max_new_tokens, num_return_sequences=options.samples)
        settings |= dict(do_sample=True, temperature=options.temperature, top_k=0)
        optimizer = config.optimizer.to_dict()

        def evaluate(model, data, tokenizer) -> tuple[list, list]:
            pairs = list(zip(data.prompts, data.targets, strict=True))
            nll, accuracy = self._score(model.eval(), pairs, 1), np.zeros(len(data))
            order = sorted(range(len(data)), key=lambda row: len(data.prompts[row]))
            for first in range(0, len(order), options.batch):
                rows = order[first : first + options.batch]
                drawn = generate(
                    model, [data.prompts[row] for row in rows], 1, eos_token_id=tokenizer.eos_id, **settings
                )
                for row, responses in zip(rows, drawn, strict=True):
                    texts = [tokenizer.decode(list(until(response, tokenizer.eos_id))) for response in responses]
                    answer = data.examples[row].answer.encode()
                    verdicts = [grade_bytes(text.encode(), answer, "gsm8k") for text in texts]
                    accuracy[row] = np.mean(np.equal(verdicts, Verdict.CORRECT))
            model.train()
            return nll, accuracy.tolist()

        def turn() -> list[list]:
            torch.manual_seed(0)
            data, tokenizer = whole_run.examples(config)
            model = self._model("float32").train()
            update, found, due = self._update(model, optimizer), [], whole_run.evaluated(config, data)
            for step, batch, rate in whole_run.updates(config, data):
                update(batch, rate)
                if step in due:
                    found.append(evaluate(model, data, tokenizer))
            return [list(values) for values in zip(*found, strict=True)]

        return turn


def generate(model, prompts: list, repeat: int, **settings) -> np.ndarray:
    """`generate` on left-padded prompts, each of them `repeat` times: (prompts, responses, tokens)."""
    longest = max(map(len, prompts))
    left_padded = [torch.from_numpy(np.pad(prompt, (longest - len(prompt), 0))).long() for prompt in prompts]
    tokens = torch.stack(left_padded).repeat_interleave(repeat, dim=0).to(DEVICE)
    with torch.inference_mode():
        out = model.generate(tokens, attention_mask=(tokens != 0).long(), pad_token_id=0, **settings)
    return out[:, longest:].reshape(len(prompts), -1, out.shape[1] - longest).cpu().numpy()


def until(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """The tokens before the first end marker."""
    return tokens[: list(tokens).index(eos_id)] if eos_id in tokens else tokens


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    tasks = Tasks(Path(sys.argv[1]))
    names = ("train", "train_uncut", "train_lora", "sample", "sample_static", "sample_top_p", "greedy")
    names += ("score", "score_one_by_one")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    serve({name: getattr(tasks, name) for name in (*names, "finetune")}, versions)
