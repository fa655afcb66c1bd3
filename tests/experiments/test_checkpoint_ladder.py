"""A ladder of checkpoints that transformers wrote: losses, few-shot and finetuned accuracies, the order, resumption."""

import json

import numpy as np
import pytest
import torch
import transformers

from premem_jax.analysis.emergence_table import read
from premem_jax.data.fewshot import with_shots
from premem_jax.data.tokenizer_files import train
from premem_jax.data.tokenizer_kinds import SentencePiece
from premem_jax.errors import Stopped, UserError
from premem_jax.experiments import checkpoint_ladder, checkpoint_rung
from premem_jax.running import sealed, storage
from premem_jax.tasks import task as tasks
from tests.configs import tiny_checkpoint_ladder

WORDS = ("cat", "dog", "sun", "sea", "oak", "ant")


def question(rng) -> dict:
    """Which of three words was named?"""
    words = rng.permutation(WORDS)[:3].tolist()
    right = int(rng.integers(3))
    return {"question": f"Name {words[right]}", "choices": words, "answer": right}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four random models with one tokenizer, questions and a text."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    rows = [question(rng) for _ in range(80)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text(" ".join(rng.choice(WORDS, 200)) + "\n")
    texts = ["Name A. B. C. Answer:\n A\n B\n C", " ".join(WORDS), *(f"{w}\n" for w in WORDS)] * 20
    tokenizer = SentencePiece(train(texts, kind="bpe", vocab_size=320))
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    for seed, name in enumerate("abcd"):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **sizes)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.bos_id, tokenizer.eos_id, 0
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        (folder / name / "tokenizer.model").write_bytes(tokenizer.model)
    return folder


def ladder(place, cache, **changes):
    """The tiny ladder of the models in `place`."""
    c = tiny_checkpoint_ladder.get_config()
    files = {"rung.texts": str(place / "text.txt"), "data.path": str(place / "questions.jsonl"), "data.context": 48}
    c.update_from_flattened_dict({"cache": str(cache)} | files | changes)
    c.study.members = tuple(
        (name, tuple((dict(said) | {"model.path": str(place / name)}).items()), needs)
        for name, said, needs in c.study.members
    )
    return c


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    return folder, checkpoint_ladder.run(ladder(place, folder / "cache"), storage.path(folder / "run"))


def test_the_forecast_is_made_from_weak_models_before_the_strong_one_is_begun(made):
    folder, summary = made
    text = (folder / "run" / "forecast" / "weak.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    finetunes = [(amount, str(k)) for amount in (8, 24) for k in range(2)]
    assert [(row["amount"], row["subset"]) for row in rows] == [(0, "0"), *finetunes] * 3
    assert {row["model"].partition("@")[2] for row in rows} == set("abc")
    assert all(row["gold_logprob"] != rows[5 * (i // 5)]["gold_logprob"] for i, row in enumerate(rows) if i % 5)
    assert len({row["accuracy"] for row in rows}) > 3
    begun = (folder / "run" / "runs" / "d" / "config.json").stat().st_mtime_ns
    assert (folder / "run" / "forecast" / "forecast.json").stat().st_mtime_ns < begun
    assert summary["verdict"]["scores"].keys() >= {"emergence_law", "smallest_amount"} and summary["failed"] == {}
    assert not list((folder / "run").glob("runs/*/finetunes/*/checkpoints"))


def test_loss_and_few_shot_accuracy_are_those_of_transformers(made, place):
    rows, _ = read(storage.path(made[0] / "run" / "forecast" / "strong.jsonl"))
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "d").eval()
    tokenizer = SentencePiece((place / "d" / "tokenizer.model").read_bytes())

    def nll(start, ids):
        tokens = torch.tensor(np.concatenate([start, ids]))[None].long()
        with torch.no_grad():
            logits = model(tokens).logits[0, len(start) - 1 : -1].double()
        return -logits.log_softmax(-1).gather(1, tokens[0, len(start) :, None])[:, 0].numpy()

    start, ids = tokenizer.encode_pair("", (place / "text.txt").read_text())
    size = 48 - len(start)
    each = [nll(start, ids[:-1][i : i + size]) for i in range(0, len(ids) - 1, size)]
    assert len(each) > 3
    np.testing.assert_allclose(rows.loss, np.concatenate(each).mean(), rtol=1e-5)

    sizes = dict(train=0, heldout=16, test=24)
    splits = tasks.load("choice", path=str(place / "questions.jsonl"), **sizes, seed=0, cache="").splits
    log_p, right = [], []
    for example in with_shots(splits["test"], splits["train"], 1, 0):
        assert example.prompt.count("Answer:") == 2
        pairs = [tokenizer.encode_pair(example.prompt, option) for option in example.options]
        score = np.array([-nll(prompt, option[:-1]).sum() for prompt, option in pairs])
        log_p.append(score[(gold := example.options.index(example.target))] - np.logaddexp.reduce(score))
        right.append(np.argmax(score) == gold)
    np.testing.assert_allclose(rows.accuracy, np.mean(right))
    np.testing.assert_allclose(rows.gold_logprob, np.mean(log_p), rtol=1e-4)
    assert rows.items.tolist() == [24] and 0 < sum(right) < 24


@pytest.mark.slow
def test_a_killed_rung_continues_at_its_finetune_on_another_mesh_too(made, place, tmp_path, monkeypatch):
    """Sharded weights or copies of them, straight or in two launches: the rows are the same."""
    finetuned, seen = checkpoint_rung.finetuned, []

    def once(config, folder, *others):
        seen.append(folder.name)
        if seen == ["8-0", "8-1", "24-0"]:
            raise Stopped
        return finetuned(config, folder, *others)

    monkeypatch.setattr(checkpoint_rung, "finetuned", once)
    c = ladder(place, tmp_path / "cache", **{"study.member": "a", "mesh.data": 8, "mesh.fsdp": 1})
    with pytest.raises(Stopped):
        checkpoint_ladder.run(c, storage.path(tmp_path / "run"))
    assert checkpoint_ladder.run(c, storage.path(tmp_path / "run")) is None
    assert seen == ["8-0", "8-1", "24-0", "24-0", "24-1"]
    again, straight = (rows_of(folder / "run", "a") for folder in (tmp_path, made[0]))
    for one, other in zip(again, straight, strict=True):
        assert [one.pop("model"), one.pop("subset")] == [other["model"], other["subset"]]
        assert one == pytest.approx({key: other[key] for key in one}, rel=1e-3)


@pytest.mark.slow
def test_adapters_alone_are_trained_where_the_config_asks_for_them(made, place, tmp_path):
    changes = {"lora.rank": 1, "study.member": "a", "finetune.amounts": (24,), "finetune.subsets": 1}
    checkpoint_ladder.run(ladder(place, tmp_path / "cache", **changes), storage.path(tmp_path / "run"))
    few, adapted = rows_of(tmp_path / "run", "a")
    full = next(row for row in rows_of(made[0] / "run", "a") if (row["amount"], row["subset"]) == (24, "0"))
    assert few == rows_of(made[0] / "run", "a")[0]
    change = lambda row: abs(row["gold_logprob"] - few["gold_logprob"])
    assert adapted["gold_logprob"] != full["gold_logprob"] and change(adapted) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune.amounts": (8, 41)}, ["finetune.amounts=(8, 41)", "40 training examples"]),
        ({"rung.texts": "nowhere.txt"}, ["rung.texts=", "nowhere.txt", "No such file"]),
        ({"rung.loss": 2.0}, ["rung.loss=2", "rung.texts"]),
        ({"evaluation.shots": 8}, ["finetune.amounts=(8, 24)", "evaluation.shots=8"]),
        ({"evaluation.by": "subject", "data.context": 32}, ["split 'fewshot'", "data.context=32"]),
        ({"data.heldout": 0}, ["data.heldout=0", "keep some"]),
        ({"data.context": 12}, ["data.context=12"]),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(place, changes, words, tmp_path):
    with pytest.raises(UserError) as error:
        checkpoint_ladder.run(ladder(place, tmp_path / "cache", **changes), storage.path(tmp_path / "run"))
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert not list(tmp_path.glob("run/runs/*/*/trace"))


def test_a_model_that_is_not_there_is_told_before_the_first_is_loaded(place, tmp_path):
    c = ladder(place, tmp_path / "cache")
    *weak, (name, changes, needs) = c.study.members
    c.study.members = (*weak, (name, (*changes[:-1], ("model.path", str(place / "e"))), needs))
    with pytest.raises(UserError, match="/e does not exist"):
        checkpoint_ladder.run(c, storage.path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def rows_of(run, name) -> list[dict]:
    return sealed.read_json(storage.path(run) / "runs" / name / "summary.json")["rows"]
