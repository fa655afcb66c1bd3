"""Supervised finetuning, then DPO, end to end on eight devices; interrupted anywhere, it ends in the same bytes."""

import json
import math

import numpy as np
import pytest

from premem_jax.analysis.trace import read_trace
from premem_jax.errors import Stopped, UserError
from premem_jax.experiments import preference
from premem_jax.running import processes
from tests.configs import tiny_preference


def config(cache, **changes):
    c = tiny_preference.get_config()
    c.cache = str(cache)
    c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return c


def files(folder):
    """What must not depend on interruptions."""
    paths = [
        p
        for kind in ("trace/*", "**/metrics.jsonl", "samples/*", "influence/*", "reference.npz")
        for p in folder.glob(kind)
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "reference" not in path.name}


def rows(folder, phase=""):
    return [json.loads(line) for line in (folder / phase / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference")
    summary = preference.run(config(folder / "cache"), folder / "run")
    return folder, summary


def test_both_phases_train_and_the_trace_has_the_whole_run(straight):
    folder, summary = straight
    assert (summary["steps"], summary["sft_steps"], summary["train_pairs"]) == (12, 4, 30)
    trace = read_trace(folder / "run" / "trace")
    assert trace.steps.tolist() == [0, 4, 8, 12] and trace.epochs.tolist() == [0, 1, 2, 3]
    types = {name.removeprefix("train ") for name in trace.splits}
    assert types == {"chosen", "rejected", "other", "permuted", "random", "greedy path"}
    first, *_ = [row for row in rows(folder / "run") if "loss" in row]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is the reference
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    assert -1 <= summary["ches_correlation_low"] <= summary["ches_correlation"] <= 1
    assert summary["margin"] > 0.3 and summary["change_chosen"] > summary["change_rejected"]
    sft = [row for row in rows(folder / "run", "sft") if "loss" in row]
    assert len(sft) == 4 and sft[-1]["loss"] < sft[0]["loss"]
    assert (folder / "run" / "report.html").stat().st_size > 10_000


def test_the_reference_is_the_policy_at_the_first_update(straight):
    """By the probes of the evaluation between the phases, which score the same responses in another program."""
    folder, _ = straight
    with np.load(folder / "run" / "reference.npz") as kept:
        reference, ches = kept["log_likelihood"], kept["ches"]
    assert reference.shape == (30, 2) and ches.shape == (30,)
    trace = read_trace(folder / "run" / "trace")
    for r, name in enumerate(("train chosen", "train rejected")):
        split = trace.splits[name]
        np.testing.assert_allclose(reference[:16, r], -(split.nll[1] * split.tokens), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("polls", [3, 9, 14])
def test_an_interrupted_run_ends_in_the_same_bytes(straight, tmp_path, monkeypatch, polls):
    """It is asked to stop after some polls: in supervised finetuning, at its end, and in DPO."""
    folder, expected = straight
    left, poll = [polls], processes.poll

    def asked():
        left[0] -= 1
        if left[0] == 0:
            raise Stopped
        poll()

    monkeypatch.setattr(processes, "poll", asked)
    with pytest.raises(Stopped):
        preference.run(config(folder / "cache"), tmp_path / "run")
    if polls == 14:
        (tmp_path / "run" / "reference.npz").write_bytes(b"damaged")
    summary = preference.run(config(folder / "cache"), tmp_path / "run")
    assert files(tmp_path / "run") == files(folder / "run")
    assert {key: summary[key] for key in ("margin", "change_other")} == {
        key: expected[key] for key in ("margin", "change_other")
    }


def test_unfit_pairs_end_the_run_before_anything_is_compiled(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    good = {"prompt": "a b", "chosen": " c", "rejected": " d"}
    lines = [good] * 3 + [good | {"rejected": " c"}, good | {"chosen": " "}]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = dict(data__task="preferences", data__path=str(pairs), data__train=0, data__test=0, base__steps=0)
    c = config(tmp_path / "cache", **changes)
    with pytest.raises(UserError, match=r"2 of 5 pairs are unfit: 1 equal .*: 3\); 1 empty .*: 4\)"):
        preference.run(c, tmp_path / "run")
