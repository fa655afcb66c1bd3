"""A curation end to end: choices are functions of what is there, originals alone are looked at, and it concludes."""

import collections
import json

import numpy as np
import pytest
from etils.epath import Path

from premem_jax.analysis.trace import read_trace
from premem_jax.data import added
from premem_jax.errors import UserError
from premem_jax.experiments import curate
from premem_jax.members import members_of
from premem_jax.running import sealed
from premem_jax.tasks import graded_arithmetic
from tests.configs import tiny_curate
from tests.pod import pod, texts
from tests.processes import command, finish

MADE = "oracle+8-seed0", "pre_memorization+8-seed0", "iid+8-seed0", "ifd+8-seed0"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curate")
    arguments = f"--config.cache={folder / 'cache'}", f"--workdir={folder / 'run'}"
    process = finish(*arguments, config=tiny_curate.__file__)
    assert process.returncode == 0, process.stderr
    return Path(folder / "run"), process.stdout


def test_a_round_ends_in_accuracies_at_equal_numbers_of_examples(done):
    folder, said = done
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [0] and summary["originals"] == 32 and summary["failed"] == {}
    assert {point["strategy"]: point["examples"] for point in summary["points"]} == dict.fromkeys(
        ("ifd", "iid", "oracle", "pre_memorization"), 40
    )
    for point in summary["points"]:
        assert point["accuracy"] == summary["runs"][f"{point['strategy']}+8-seed0"]["test_accuracy"]
        assert point["seconds"] > 0 and (point["strategy"] == "iid" or point["ratio"] >= 0.8)
    assert "One seed has no interval" in (folder / "report.html").read_text() and "Look at" in said
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{kind}{width}.png" for kind in ("accuracy", "types") for width in ("", "_narrow")
    }


def test_members_are_trained_on_what_was_chosen_and_only_originals_are_looked_at(done):
    folder, _ = done
    test = {example.prompt for example in graded_arithmetic.problems("test", 16, 0)}
    for name in MADE:
        record = sealed.read_json(folder / "members" / name / "selection.json")
        new = added.read(folder / "members" / name / "added.jsonl")
        assert len(new) == sum(record["counts"]) == 8 and not test & {example.prompt for example in new}
        counted = collections.Counter(record["originals"])
        assert [counted[id] for id in record["examples"]] == record["counts"]
        summary = sealed.read_json(folder / "runs" / name / "summary.json")
        assert summary["train_examples"] == 40 and summary["steps"] == 5
        train = read_trace(folder / "runs" / name / "trace").split("train")
        np.testing.assert_array_equal(train.example, np.arange(32))


def test_the_oracle_has_the_errors_on_the_test_and_iid_has_none(done):
    folder, _ = done
    test = read_trace(folder / "runs" / "base-seed0" / "trace").split("test")
    kinds = [example.metadata["type"] for example in graded_arithmetic.problems("test", 16, 0)]
    rows = json.loads("[" + ",".join((folder / "runs/base-seed0/examples.jsonl").read_text().splitlines()) + "]")
    assert [row["metadata"]["type"] for row in rows if row["split"] == "test"] == kinds
    record = sealed.read_json(folder / "members" / MADE[0] / "selection.json")
    for original, weight in zip(graded_arithmetic.problems("train", 32, 0), record["weights"], strict=True):
        mine = [
            1 - c / n
            for c, n, k in zip(test.correct[-1], test.samples[-1], kinds, strict=True)
            if k == original.metadata["type"]
        ]
        assert weight == pytest.approx(np.mean(mine) if mine else 0)
    assert set(sealed.read_json(folder / "members" / MADE[2] / "selection.json")["weights"]) == {1.0}


def test_a_strategy_without_its_inputs_is_refused_before_the_training(tmp_path):
    config = tiny_curate.get_config()
    config.data.task, config.study.source = "arithmetic", "samples"
    with pytest.raises(UserError, match="'oracle': not all training examples of arithmetic have a type"):
        curate.run(config, Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_ifd_chooses_by_targets_with_and_without_their_prompts(done):
    folder, _ = done
    trace = read_trace(folder / "runs" / "base-seed0" / "trace")
    given, alone = trace.split("train").nll[0], trace.split("train alone").nll[0]
    ratio = np.exp(given) / np.exp(alone)
    weights = np.array(sealed.read_json(folder / "members" / MADE[3] / "selection.json")["weights"])
    chosen, fit = np.flatnonzero(weights), np.flatnonzero(ratio <= 1)
    assert len(chosen) == min(len(fit), round(0.3 * 32)) and set(chosen) <= set(fit)
    assert ratio[chosen].min() >= np.delete(ratio, np.union1d(chosen, np.flatnonzero(ratio > 1))).max(initial=0)


def test_a_choice_is_made_again_to_the_byte(done, tmp_path):
    folder, _ = done
    config = tiny_curate.get_config()
    member = members_of(config)[MADE[1]]
    files = Path(tmp_path) / "members" / MADE[1]
    files.mkdir(parents=True)
    curate.choose(config, member, {"base-seed0": folder / "runs" / "base-seed0"}, files)
    for name in ("added.jsonl", "selection.json"):
        assert (files / name).read_bytes() == (folder / "members" / MADE[1] / name).read_bytes()


@pytest.mark.slow
def test_two_processes_choose_and_train_as_one(done, tmp_path):
    folder, _ = done
    arguments = f"--config.cache={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"
    with pod(2, command(arguments, tiny_curate.__file__), tmp_path / "logs") as processes:
        assert [process.wait(timeout=600) for process in processes] == [0, 0], texts(tmp_path / "logs")
    for name in MADE:
        for file in ("added.jsonl", "selection.json"):
            assert (tmp_path / "run/members" / name / file).read_bytes() == (
                folder / "members" / name / file
            ).read_bytes()
    mine, theirs = (json.loads((place / "summary.json").read_text()) for place in (tmp_path / "run", folder))
    accuracies = lambda summary: {name: run["test_accuracy"] for name, run in summary["runs"].items()}
    assert accuracies(mine) == accuracies(theirs)
