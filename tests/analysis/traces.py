"""Traces for tests: the released GSM8K runs, and small made-up ones."""

import math
import re

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np

from tests.shared import shared

FOLDER = "data/traces/gsm8k_llama3_8b"

# A separate script over the release: per checkpoint, train / pre-memorization / test accuracy at tau = -2.3, means over
# the examples the run was trained on.
RELEASED = """
12ep quarter lr2e-05: 0.4549/0.3862/0.3618 0.7872/0.3694/0.3976 0.9542/0.3944/0.4032 0.9942/0.4001/0.4382 0.9991/0.4010/0.4399 0.9986/0.4010/0.4355
1ep full lr0.0002: 0.2458/0.2169/0.1906
1ep full lr5e-05: 0.4826/0.3933/0.3918
1ep full lr5e-07: 0.0768/0.0768/0.0689
3ep full lr0.0002: 0.1173/0.1118/0.0912 0.3834/0.2160/0.1794 0.7103/0.2566/0.2478
3ep full lr2e-05: 0.5357/0.4433/0.4522 0.7205/0.4836/0.5296 0.8431/0.5034/0.5444
3ep full lr5e-05: 0.3710/0.2938/0.2857 0.6742/0.3576/0.4121 0.8476/0.3836/0.4533
3ep full lr5e-07: 0.2810/0.2806/0.2564 0.4207/0.4190/0.3978 0.4436/0.4421/0.4192
6ep full lr0.0002: 0.1248/0.1180/0.1014 0.2614/0.1774/0.1372 0.5236/0.2341/0.1780 0.7538/0.2681/0.2094 0.9060/0.2896/0.2256 0.9621/0.2977/0.2391
6ep full lr2e-05: 0.5037/0.4196/0.4209 0.6775/0.4508/0.4764 0.8294/0.4808/0.5066 0.9171/0.5008/0.5086 0.9662/0.5141/0.5274 0.9831/0.5183/0.5369
6ep full lr5e-05: 0.3611/0.2826/0.2783 0.5842/0.3259/0.3518 0.7778/0.3607/0.3827 0.8889/0.3808/0.4008 0.9543/0.3931/0.4167 0.9800/0.3979/0.4297
6ep full lr5e-07: 0.2997/0.2992/0.2832 0.4447/0.4427/0.4203 0.5047/0.5018/0.4829 0.5266/0.5232/0.4908 0.5461/0.5424/0.5142 0.5456/0.5421/0.5116
6ep half lr2e-05: 0.3891/0.3756/0.3336 0.5675/0.4756/0.4161 0.8128/0.5086/0.4884 0.9368/0.5264/0.4863 0.9854/0.5358/0.5072 0.9981/0.5379/0.5069
"""  # noqa: E501
RELEASED = dict(line.split(": ") for line in RELEASED.strip().splitlines())

# The perplexities drawn from include the thresholds, so that ties are common; log of the same float on both sides.
PERPLEXITIES = (1.0, 1.1055, 1.5, 2.0)
NLL = st.one_of(st.just(math.nan), st.sampled_from([math.log(p) for p in PERPLEXITIES]), st.floats(0, 2))
ACCURACY = st.one_of(st.just(math.nan), st.sampled_from([0, 0.2, 0.4, 0.6, 0.8, 1]))


@st.composite
def runs(draw):
    """Accuracies (M, E), NLLs (M, E) and a threshold, made up."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    accuracy_ME = draw(arrays.arrays(np.float64, shape, elements=ACCURACY, fill=st.nothing()))
    nll_ME = draw(arrays.arrays(np.float64, shape, elements=NLL, fill=st.nothing()))
    return accuracy_ME, nll_ME, draw(st.sampled_from(PERPLEXITIES))


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


GIVEN = {"threshold.rule": "given", "threshold.perplexity": 1.3}


def write_table(path, runs=3, evaluations=3, examples=60, task="made <b>up</b>", **constant):
    """Runs of a made-up trainer without held-out examples."""
    rng = np.random.default_rng(0)
    rows = np.array([(r, m, e) for r in range(runs) for m in range(evaluations) for e in range(examples)])
    correct = rng.binomial(4, 0.2 + 0.1 * rows[:, 1])
    columns = dict(run=np.array([f"run {r}" for r in rows[:, 0]]), step=10 * rows[:, 1], example=rows[:, 2])
    columns |= dict(nll=rng.gamma(4, 0.2 / (1 + rows[:, 1])), n_samples=np.full(len(rows), 4), n_correct=correct)
    columns |= dict(test_accuracy=0.2 + 0.07 * rows[:, 1] + 0.02 * rows[:, 0], task=np.full(len(rows), task))
    columns |= {key: np.full(len(rows), value) for key, value in constant.items()}
    np.savez(path, **columns)
    return path
