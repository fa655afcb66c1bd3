"""Pairs that the model samples itself: which they are, in which batches they come, and that they survive a kill."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from premem_jax.config import evaluator
from premem_jax.errors import Stopped, UserError
from premem_jax.evaluators.rounds import Drawn
from premem_jax.experiments import preference
from premem_jax.experiments.on_policy import NAME, Draw, Rounds
from premem_jax.grading.verdict import Verdict
from premem_jax.running import processes, sealed
from premem_jax.running.programs import Clock
from premem_jax.training.objectives import Ascent
from tests import tiny
from tests.configs import tiny_preference

RIGHT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED


@pytest.mark.parametrize(
    ("verdicts", "pair"),
    [
        ((WRONG, RIGHT, RIGHT, WRONG), (1, 0)),
        ((RIGHT, UNPARSED, WRONG, RIGHT), (0, 1)),
        ((RIGHT, RIGHT, RIGHT, WRONG), None),  # the wrong one says nothing
        ((WRONG, WRONG, UNPARSED, WRONG), None),
    ],
)
def test_a_pair_is_the_first_right_and_the_first_wrong_sample(verdicts, pair):
    draw = Draw(tiny.split(NAME), tiny.run(), batch=2, samples=4, max_new_tokens=3)
    tokens = np.arange(5, 17, dtype=np.int32).reshape(4, 3)
    length = np.array([2, 3, 1, 0])  # the second did not end within the three tokens
    found = draw._pair(2, Drawn(tokens, length, np.zeros(4)), verdicts)
    if pair is None:
        assert found is None
        return
    end = [tiny.tokenizer().eos_id]
    said = {0: [5, 6, *end], 1: [8, 9, 10], 2: [11, *end]}
    assert found["tokens"] == [said[r] for r in pair]
    assert found["example"] == tiny.data().examples[2].id
    assert found["texts"] == [tiny.tokenizer().decode(tokens[r, : length[r]]) for r in pair]


def config(cache, folder, **changes):
    c = tiny_preference.get_config()
    c.cache = str(cache)
    c.base.steps, c.sft.epochs, c.influence.every = 0, 0, 4
    c.train.learning_rate = 2e-5  # small enough for first order
    c.evals = {name: c.evals[name] for name in ("train_chosen", "train_rejected")}
    c.evals.test_greedy = evaluator("greedy_responses", "test", (0,), prompts=4, batch=8, max_new_tokens=12)
    c.on_policy.update(every=3, samples=4, max_new_tokens=8, batch=16)
    grader = folder / "grader.py"
    grader.write_text("def even(response, answer):\n    return sum(map(ord, response)) % 2 == 0\n")
    c.data.grader = f"python:{grader}:even"
    c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return c


def test_each_batch_has_the_pairs_of_its_round(tmp_path):
    c = config(tmp_path, tmp_path)
    c.train.batch = 4
    data = dataclasses.replace(tiny.data(), rejected=tiny.data().targets)
    made = SimpleNamespace(splits={"train": data}, mesh=tiny.one_device())
    rounds = Rounds(c, tmp_path, Clock(), made, None, Ascent(), dict)
    ids = [e.id for e in tiny.data().examples]
    for first in (0, 3, 6):  # of the examples, the later half; a response is the number of the round
        pairs = [{"example": id, "texts": ["", ""], "tokens": [[first + 1] * 2, [first + 2] * 3]} for id in ids[6:]]
        sealed.write_json(
            tmp_path / "on_policy" / f"step-{first:08d}.json", {"step": first, "prompts": 12, "pairs": pairs}
        )
    batches = list(rounds.batches(1, 8))
    assert len(batches) == 7
    for step, (batch, arrays) in zip(range(1, 8), batches, strict=True):
        for b, id in enumerate(batch[batch >= 0]):
            mine = [(arrays["segments"] == segment) & (arrays["weights"] > 0) for segment in arrays["responses"][b]]
            said = [arrays["tokens"][where].tolist() for where in mine]
            first = step - step % 3
            assert said == ([[first + 1] * 2, [first + 2] * 3] if id in ids[6:] else [[], []])
    again = [ids.tolist() for ids, _ in rounds.batches(5, 8)]
    assert again == [ids.tolist() for ids, _ in batches[4:]]
    assert rounds.share() == pytest.approx(7 / 12)
    with pytest.raises(UserError, match=r"step-00000009\.json is damaged or missing"):
        list(rounds.batches(8, 10))


def files(folder):
    kinds = ("trace/*", "**/metrics.jsonl", "samples/*", "influence/*", "on_policy/step-*")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.glob(kind)}


@pytest.mark.slow
def test_an_interrupted_run_trains_on_the_same_samples(tmp_path, monkeypatch):
    """And splits the same updates by source, into parts that sum to what happens."""
    cache, straight = tmp_path / "cache", tmp_path / "straight"
    summary = preference.run(config(cache, tmp_path), straight)
    expected = files(straight)
    rounds = sorted(name for name in expected if name.startswith("on_policy"))
    assert rounds == [f"on_policy/step-{first:08d}.json" for first in (0, 3, 6)]
    assert 0 < summary["on_policy_share"] <= 1
    document = json.loads((straight / rounds[1]).read_text())
    assert document["pairs"] and document["pairs"] != json.loads((straight / rounds[0]).read_text())["pairs"]
    for name in ("influence/step-00000001.json", "influence/step-00000004.json"):
        document = json.loads(expected[name])
        assert len(document["norms_of_g"]) == 2 and set(document["types"]) == {"chosen", "rejected"}
        for found in document["types"].values():
            total = np.sum([found[source] for source in ("chosen", "rejected", "momentum", "decay")], axis=0)
            np.testing.assert_allclose(total, found["actual"], atol=0.15 * np.abs(found["actual"]).max())
            assert found["norm_of_k"] > 0 and min(found["norm_of_a"]) > 1
    assert {"copied_before", "copied_after", "repeated_4grams", "greedy_length"} <= summary.keys()
    assert (straight / "figures" / "influence.png").exists()
    poll, begun, stopped = processes.poll, tmp_path / "run" / "on_policy" / "step-00000003.json", []

    def asked():
        if begun.exists() and not stopped:
            stopped.append(True)
            raise Stopped
        poll()

    monkeypatch.setattr(processes, "poll", asked)
    with pytest.raises(Stopped):
        preference.run(config(cache, tmp_path), tmp_path / "run")
    assert begun.exists()  # in the second round
    preference.run(config(cache, tmp_path), tmp_path / "run")
    assert files(tmp_path / "run") == expected
