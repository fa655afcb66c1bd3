"""Traces for tests: the released GSM8K runs, and small made-up ones."""

import re

import numpy as np

from tests.shared import shared

FOLDER = "data/traces/gsm8k_llama3_8b"


def released_run(name: str) -> dict[str, np.ndarray]:
    """One released Llama3 8B GSM8K run `12ep quarter lr2e-05` and the like, in the release's own order of files.

    Returns step (M,), train_accuracy and train_nll (M, 7473), test_accuracy (M, 1319), train_correct, train_samples
    and so on, and `trained` (7473,) bool. Five samples where five are stored, else fifty; verdict 0 is correct.
    """
    epochs, size, rate = re.fullmatch(r"(\d+)ep (\w+) lr(\S+)", name).groups()
    file = np.load(shared(f"{FOLDER}/gsm8k_orig_{epochs}epochs_{size}_lr{rate}_bs128.npz"), allow_pickle=False)
    steps = sorted({int(match[1]) for key in file.files if (match := re.match(r"checkpoint-(\d+)__", key))})

    def verdicts(step: int, split: str) -> np.ndarray:
        pattern = rf"checkpoint-{step}__{split}_answer_types(5|50)_seed2(_temp0\.8)?"
        keys = [key for key in file.files if re.fullmatch(pattern, key)]
        return file[min(keys, key=lambda key: "types50" in key)]

    run = {"step": np.array(steps)}
    for split in ("train", "test"):
        verdict = np.stack([verdicts(step, split) for step in steps])
        run[f"{split}_correct"] = (verdict == 0).sum(axis=-1)
        run[f"{split}_samples"] = np.full(verdict.shape[:2], verdict.shape[-1])
        run[f"{split}_accuracy"] = (verdict == 0).mean(axis=-1)
    run["train_nll"] = np.log(np.stack([file[f"checkpoint-{step}__train_perplexities"] for step in steps]))
    run["trained"] = np.zeros(run["train_nll"].shape[1], bool)
    run["trained"][file["subsample_idxs"]] = True
    return run


def synthetic_splits(seed: int, evaluation: int, examples: int = 400, samples: int = 4) -> dict:
    """One evaluation of a made-up run whose examples get easier and then memorized, for `write_evaluation`."""
    draw = np.random.default_rng(seed)  # the same examples at every evaluation
    skill, speed = draw.beta(0.8, 0.8, examples), draw.lognormal(0, 0.8, examples)
    nll = 0.6 * np.exp(-0.5 * speed * evaluation) * draw.lognormal(0, 0.2, examples)
    now = np.random.default_rng((seed, int(4 * evaluation)))
    chance = np.where(nll < 0.1, 0.98, skill * (1 - np.exp(-evaluation)))
    columns = {}
    for split, p in (("train", chance), ("test", skill * (1 - np.exp(-evaluation)))):
        correct = now.binomial(samples, p)
        columns[split] = {
            "example": np.arange(examples),
            "samples": np.full(examples, samples),
            "correct": correct,
            "unparsed": now.binomial(samples - correct, 0.1),
            "decided_on_host": now.binomial(samples, 0.01, examples),
        }
    columns["train"] |= {"target_nll": nll, "target_tokens": np.full(examples, 90)}
    return columns
