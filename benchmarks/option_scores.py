"""Few-shot evaluation beside an independent computation with `transformers`, question by question, on a real model.

    python -m benchmarks.smollm2 DIR
    python -m benchmarks.option_scores DIR MMLU.jsonl COMMONSENSEQA.jsonl COLA.tsv [--gsm8k=FOLDER] [--items=50]

Of each file of multiple choice, the first questions of a shuffle are asked with `--shots` solved ones before them. Ours
are the evaluators `option_likelihood` and `exact_match`; theirs is one forward pass for each prompt, without padding,
and the log-probabilities of the options' tokens after it. Of GSM8K, greedy responses of `accuracy` are compared with
those of `generate`, and verdicts with the plain grader. Prints a table in Markdown; both sides compute in float32.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from premem_jax import sharding
from premem_jax.data import tokenizer_files
from premem_jax.data.examples import Example
from premem_jax.data.fewshot import with_shots
from premem_jax.data.pipeline import tokenize
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, Evaluator, Split
from premem_jax.evaluators.exact_match import ExactMatch
from premem_jax.evaluators.option_likelihood import OptionLikelihood
from premem_jax.evaluators.run import Run
from premem_jax.grading.grader import grader_of
from premem_jax.grading.verdict import Verdict
from premem_jax.models.decoder import build
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import storage
from premem_jax.running.programs import Clock
from premem_jax.tasks import choice, gsm8k

CONTEXT, BATCH = 2048, 10
BUCKETS = (64, 96, 160, 256, 384, 640)


class Both:
    """One model in both programs."""

    def __init__(self, folder: Path):
        checkpoint = Checkpoint(str(folder))
        mesh = sharding.make_mesh(dict(data=-1, fsdp=1, tensor=1))
        self.tokenizer = tokenizer_files.load(str(folder))
        self.tokenizer.also_stop = (*self.tokenizer.also_stop, *checkpoint.eos_ids)
        model = build(checkpoint.config, dtype="float32", mesh=mesh)
        self.run = Run(self.tokenizer, model, mesh, Clock(), buckets=BUCKETS)
        self.params = checkpoint.load(mesh, "float32")
        self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")

    def split(self, examples: Sequence[Example], grader) -> Split:
        data = tokenize("test", examples, self.tokenizer, context=CONTEXT, drop_long=False)
        return Split("test", data, grader)

    def measured(self, evaluator: Evaluator) -> Collected:
        params = self.run.weights(self.params, evaluator.layout)
        return Collected(evaluator.examples).all(evaluator.measure(params, 0))

    def after(self, prompt: str, options: Sequence[str]) -> tuple[np.ndarray, int, list[int]]:
        """Theirs: log-probabilities of options of one token, the likeliest token of all, the options' tokens."""
        before, *pairs = (self.their_tokenizer(prompt + x)["input_ids"] for x in ("", *options))
        assert all(ids[:-1] == before for ids in pairs), "an option is more than one token"
        with torch.no_grad():
            log_p = self.theirs(torch.tensor([before])).logits[0, -1].double().log_softmax(-1).numpy()
        tokens = [ids[-1] for ids in pairs]
        return log_p[tokens], int(log_p.argmax()), tokens


def multiple_choice(both: Both, path: Path, items: int, shots: int) -> str:
    """A line of the table for one file."""
    every = choice.read(storage.path(path))
    asked = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:items]]
    prompted = with_shots(asked, every, shots, 0, by="subject")
    split = both.split(prompted, choice.GRADER)
    cut = dataclasses.replace(split.data, targets=[target[:-1] for target in split.data.targets])  # the answer alone
    scored = both.measured(OptionLikelihood(split, both.run, batch=BATCH)).columns
    matched = both.measured(ExactMatch(dataclasses.replace(split, data=cut), both.run, batch=BATCH)).columns
    nll, right, exact, exact_nll = [], [], [], []
    for example in split.data.examples:
        log_p, likeliest, tokens = both.after(example.prompt, example.options)
        gold = example.options.index(example.target)
        nll.append(np.logaddexp.reduce(log_p) - log_p[gold])
        right.append(np.argmax(log_p) == gold)
        exact.append(likeliest == tokens[gold])
        exact_nll.append(-log_p[gold])
    same = lambda ours, theirs: f"{np.sum(ours == np.array(theirs))} of {items}"
    off = max(np.max(np.abs(scored["target_nll"] - nll)), np.max(np.abs(matched["target_nll"] - exact_nll)))
    return (
        f"| {path.stem} | {shots} | {np.mean(right):.0%}, {same(scored['correct'], right)} same "
        f"| {np.mean(exact):.0%}, {same(matched['correct'], exact)} same | {off:.1e} |"
    )


def generated(both: Both, folder: Path, items: int, tokens: int) -> str:
    """A sentence on greedy responses to the first questions of GSM8K's test split."""
    asked = gsm8k.read(folder, "test")[:items]
    split = both.split(asked, gsm8k.GRADER)
    options = dict(batch=BATCH, samples=1, max_new_tokens=tokens, first_round=tokens, temperature=0.0, keep_texts=items)
    found = both.measured(Accuracy(split, both.run, **options))
    ours = {text["example"]: text["responses"][0]["text"] for text in found.texts}
    pad, grade, same, right = both.their_tokenizer.pad_token_id, grader_of(gsm8k.GRADER).host, 0, 0
    for first in range(0, items, BATCH):
        part = asked[first : first + BATCH]
        given = both.their_tokenizer([e.prompt for e in part], return_tensors="pt", padding=True)
        with torch.no_grad():
            out = both.theirs.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=pad)
        texts = both.their_tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for example, text in zip(part, texts, strict=True):
            same += text == ours[example.id]
            right += grade(text.encode(), example.answer) == Verdict.CORRECT
    return (
        f"GSM8K, greedy responses of up to {tokens} tokens: {same} of {items} are the same; right are "
        f"{int(found.columns['correct'].sum())} of ours and {right} of theirs."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="longest response to a question of GSM8K")
    options = parser.parse_args()
    both = Both(options.model)
    print("| file | shots | option_likelihood: accuracy | exact_match: accuracy | largest difference, nats |")
    print("|---|---|---|---|---|")
    for path in options.files:
        print(multiple_choice(both, path, options.items, options.shots), flush=True)
    if options.gsm8k:
        print(generated(both, options.gsm8k, options.items, options.tokens))


if __name__ == "__main__":
    main()
