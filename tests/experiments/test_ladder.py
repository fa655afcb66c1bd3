"""A ladder in small, from pretraining to verdict: the order of forecast and truth, what is measured, resumption."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from premem_jax import config as defaults
from premem_jax.analysis.emergence_law import Law
from premem_jax.analysis.emergence_table import read
from premem_jax.errors import Stopped, UserError
from premem_jax.experiments import ladder, pretraining, rungs
from premem_jax.running import sealed, storage
from premem_jax.tasks import knowledge
from tests import tiny
from tests.configs import tiny_ladder, tiny_rungs

PLANTED = ("often", 0.05, (3.0, 3.5, 1.0, 0.9, 0.125)), ("seldom", 0.01, (2.5, 3.5, 1.0, 0.9, 0.125))


def config(cache, **changes):
    c = tiny_ladder.get_config()
    c.cache = str(cache)
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    return folder, ladder.run(config(folder / "cache"), storage.path(folder / "run"))


def test_the_forecast_is_sealed_before_a_strong_model_is_begun_and_never_after(made, tmp_path):
    folder, summary = made
    forecast = folder / "run" / "forecast" / "forecast.json"
    digest = sealed.digest(forecast.read_bytes())
    begun = lambda name: (folder / "run" / "runs" / name / "config.json").stat().st_mtime_ns
    assert begun("fit") < forecast.stat().st_mtime_ns < begun("truth")
    given = json.loads((folder / "run" / "runs" / "truth" / "config.json").read_text())["forecast"]
    assert given == digest == sealed.read_json(forecast.with_name("truth_opened.json"))["forecast"]
    assert summary["verdict"]["scores"].keys() >= {"emergence_law", "smallest_amount", "pass_rate"}
    assert summary["gates"].keys() == {"before", "after"} and "truth" in summary["runs"]
    again = shutil.copytree(forecast.parent, tmp_path / "forecast")
    (again / "forecast.json").unlink()
    with pytest.raises(UserError, match="the truth has been opened"):
        weak = {"fit": storage.path(folder / "run" / "runs" / "fit")}
        ladder.predict(config(folder / "cache"), storage.path(again), weak)
    assert not (again / "forecast.json").exists()


def test_a_rung_whose_weights_changed_is_none(made, tmp_path, caplog):
    """The whole pretraining is then to be made again; a damaged record is set aside."""
    cache, *_ = (made[0] / "cache").glob("rungs-*")
    folder = storage.path(shutil.copytree(cache, tmp_path / "rungs"))
    *_, last = pretraining.rungs_in(folder)
    assert pretraining.digest(pretraining.weights_of(last, tiny.one_device())) == last.weights
    [file] = last.folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged: the weights are others"):
        pretraining.weights_of(last, tiny.one_device())
    record = folder / f"{last.step}.json"
    record.write_bytes(record.read_bytes()[:-9])
    assert last.step not in [rung.step for rung in pretraining.rungs_in(folder)] and "is damaged" in caplog.text


def test_the_table_is_one_that_anybody_can_read(made):
    folder = made[0] / "run" / "forecast"
    rows, notes = read(storage.path(folder / "weak.jsonl"))
    assert notes == [] and len(np.unique(rows.loss)) == 3
    drawn = {(amount, subset) for amount, subset in zip(rows.amount.tolist(), rows.subset.tolist(), strict=True)}
    assert drawn == {(0, "0"), (8, "0"), (8, "1"), (16, "0"), (16, "1"), (64, "0")}  # of 64 examples there is one set


def test_losses_and_few_shot_accuracy_are_those_of_transformers(made):
    import torch

    folder, c = made[0], config(made[0] / "cache")
    table, _ = read(storage.path(folder / "run" / "forecast" / "strong.jsonl"))
    last = table.where(table.loss == table.loss.min())
    [rung] = (folder / "cache").glob("rungs-*/rung-24")
    model = AutoModelForCausalLM.from_pretrained(rung).eval()
    world = knowledge.World(**c.world, seed=c.seed)
    tokenizer = pretraining.tokenizer_of(world)

    def nll(prompt, target):
        ids = torch.tensor(np.concatenate(tokenizer.encode_pair(prompt, target)))[None]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        return -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy(), logits.argmax(-1) == ids[0, 1:]

    texts = knowledge.texts(world, 16, pretraining.HELDOUT_SEED, asking=False)
    each = np.concatenate([nll("", text.target)[0] for text in texts])
    np.testing.assert_allclose(last.loss, each.mean(), rtol=1e-5)

    odd, even = knowledge.questions(world, True)[16:64], knowledge.questions(world, False)
    asked = pretraining.with_shots(odd, even, 2, 0, between=" ")
    for one, question in zip(asked, odd, strict=True):
        words = one.prompt.split()
        assert words[:2] != words[3:5] and one.prompt.endswith(question.prompt) and len(words) == 8
    found = [nll(example.prompt, example.target) for example in asked]  # the value is last but one, before the marker
    np.testing.assert_allclose(last.accuracy, np.mean([bool(match[-2]) for _, match in found]))
    np.testing.assert_allclose(last.gold_logprob, -np.mean([n[-2] for n, _ in found]), rtol=1e-5)
    np.testing.assert_allclose(last.pass_rate, np.mean([np.exp(-n[-2]) for n, _ in found]), rtol=1e-5)
    assert last.items.tolist() == [48]


@pytest.mark.slow
def test_a_killed_size_continues_at_its_rung(made, tmp_path, monkeypatch):
    """Also where the rungs are pretrained anew, for another cache."""
    measured, seen = rungs.measured, []

    def once(config, folder, ground, rung, *finetunes):
        seen.append(rung.step)
        if seen == [3, 6]:
            raise Stopped
        return measured(config, folder, ground, rung, *finetunes)

    monkeypatch.setattr(rungs, "measured", once)
    c = config(tmp_path / "cache", **{"study.member": "fit"})
    with pytest.raises(Stopped):
        ladder.run(c, storage.path(tmp_path / "run"))
    assert ladder.run(c, storage.path(tmp_path / "run")) is None and seen == [3, 6, 6, 12]
    rows = lambda run: sealed.read_json(run / "runs" / "fit" / "summary.json")["rows"]
    assert rows(tmp_path / "run") == rows(made[0] / "run")


def test_a_planted_law_is_drawn_from_on_the_losses_of_real_rungs(made, tmp_path):
    folder, _ = made
    losses = sorted({row["loss"] for row in of(folder, "fit")})
    planted = (losses[0] + 0.3, losses[-1] - 0.2, 1.0, 0.5, 0.125)
    c = config(folder / "cache", planted=planted, **{"study.member": "fit"})
    ladder.run(c, storage.path(tmp_path / "run"))
    rows = of(tmp_path, "fit")
    assert sorted({row["loss"] for row in rows}) == losses and len(rows) == len(of(folder, "fit"))
    law = Law("log_power_law", 2, 64, *planted, planted[-1])
    z = [
        (row["accuracy"] - (p := law.accuracy(row["loss"], row["amount"]))) / np.sqrt(p * (1 - p) / row["items"])
        for row in rows
    ]
    assert np.abs(z).max() < 4 and 0.5 < np.std(z) < 1.5


def test_mixes_are_all_forecast_before_a_strong_model_of_any_is_begun(made, tmp_path):
    """Accuracies are planted; the mixes share facts and held-out texts, and differ in the texts that ask."""
    mixes = {name: {"world.asked": asked, "planted": law} for name, asked, law in PLANTED}
    c = defaults.ladder(tiny_rungs.get_config(), {"fit": {}}, {"truth": {"pretrain.steps": 24}}, mixes)
    c.update(cache=str(made[0] / "cache"))  # which has the rungs of one mix
    c.study.draws = 0
    summary = ladder.run(c, storage.path(tmp_path / "run"))
    time = lambda name: (tmp_path / "run" / name).stat().st_mtime_ns
    sealed_at = [time(f"forecast/{mix}/forecast.json") for mix in mixes]
    assert max(time(f"runs/{mix}.fit/summary.json") for mix in mixes) < min(sealed_at)
    assert max(sealed_at) < min(time(f"runs/{mix}.truth/config.json") for mix in mixes)
    for mix in mixes:
        given = json.loads((tmp_path / f"run/runs/{mix}.truth/config.json").read_text())["forecast"]
        assert given == sealed.digest((tmp_path / f"run/forecast/{mix}/forecast.json").read_bytes())
        rows, _ = read(storage.path(tmp_path / f"run/forecast/{mix}/weak.jsonl"))
        assert {float(x) for x in rows.loss} == {row["loss"] for row in of(tmp_path, f"{mix}.fit")}
    [pair] = summary["choice"]
    assert pair["families"] == ["often", "seldom"] and summary["mixes"].keys() == mixes.keys()
    page = (tmp_path / "run" / "forecast" / "report.html").read_text()
    assert "often or seldom" in page and "Trust the order only if" in page
    texts = [knowledge.texts(knowledge.World(asked=asked), 40, 0, asking=False) for asked in (0.0, 0.4)]
    assert texts[0] == texts[1] != knowledge.texts(knowledge.World(asked=0.4), 40, 0)


def of(folder, name) -> list[dict]:
    return sealed.read_json(folder / "run" / "runs" / name / "summary.json")["rows"]
