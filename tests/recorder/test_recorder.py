"""A folder recorded by hand, against one that `write_evaluation` makes, and mistakes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from premem_jax.analysis import trace
from premem_jax.analysis.readers import read_runs
from premem_jax.errors import UserError
from premem_jax.recorder import Recorder
from tests.analysis.traces import synthetic_splits

GIVEN = {"rule": "given", "perplexity": 1.1}


def opened(folder, **changes):
    return Recorder(folder, **dict(task="made up", model="none", threshold=GIVEN) | changes)


def recorded(folder, evaluations=(1, 2, 3)):
    """A run whose likelihoods and samples come in two calls each, the train split in two halves."""
    for evaluation in evaluations:
        recorder = opened(folder)  # another process, each time
        for split, columns in synthetic_splits(0, evaluation, examples=60).items():
            counts = {key: columns[key] for key in ("unparsed", "decided_on_host")}
            ids, at = columns["example"], dict(epoch=evaluation)
            texts = [[("yes", "correct"), (f"no {id}", "wrong")] if id < 3 else [] for id in ids]
            for half in (slice(40), slice(40, None)):
                more = {key: x[half] for key, x in counts.items()}
                numbers = columns["correct"][half], 4, texts[half]
                recorder.log(10 * evaluation, split, ids[half], None, *numbers, **more, **at)
            if "target_nll" in columns:
                recorder.log(10 * evaluation, split, ids, columns["target_nll"], target_tokens=90, **at)
    prompts = [f"prompt {id} </script>" for id in range(60)]
    for split in ("train", "test"):
        opened(folder).examples(split, range(60), prompts, ["the reference"] * 60, metadata=[{"id": "a"}] + [None] * 59)
    return opened(folder)


def test_what_is_recorded_in_parts_is_what_is_written_at_once(tmp_path):
    recorded(tmp_path / "run")
    for evaluation in (1, 2, 3):
        splits = synthetic_splits(0, evaluation, examples=60)
        digest = trace.texts_digest(tmp_path / "run" / "trace", 10 * evaluation)
        trace.write_evaluation(tmp_path / "once", 10 * evaluation, evaluation, splits, texts=digest)
        name = f"step-{10 * evaluation:08d}.parquet"
        assert (tmp_path / "run" / "trace" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    [run] = read_runs(tmp_path)[:1]
    assert (run.task, len(run.trace.steps), run.trace.splits.keys()) == ("made up", 3, {"train", "test"})


def test_its_report_has_the_curves_and_every_text(tmp_path):
    page = recorded(tmp_path).report().read_text()
    assert "accuracy before memorization is" in page and 'id="explorer"' in page
    assert all(f'"no {id}"' in page for id in range(3)) and "prompt 59 \\u003c/script\\u003e" in page
    assert (tmp_path / "audit.parquet").exists() and len(read_runs(tmp_path)) == 1  # the audit is no table of runs
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["threshold"] == 1.1 and 0 < summary["pre_memorization_accuracy"] < summary["train_accuracy"] < 1


def test_what_is_given_again_replaces_what_was(tmp_path):
    recorder = opened(tmp_path)
    recorder.log(5, "train", [1, 2], [0.5, 0.6], [1, 0], 2, [[("a", "correct")], [("b", "wrong")]], epoch=1)
    recorder.log(5, "train", [2, 7], [0.7, 0.1], texts=[[("c", "unparsed")], []], epoch=1)
    found = trace.read_trace(tmp_path / "trace").split("train")
    np.testing.assert_allclose(found.nll, [[0.5, 0.7, 0.1]], rtol=1e-6)
    assert found.correct.tolist() == [[1, 0, 0]] and found.samples.tolist() == [[2, 2, 0]]
    rows = [json.loads(line) for line in (tmp_path / "samples" / "step-00000005.jsonl").read_text().splitlines()]
    assert [(row["example"], row["responses"][0]["text"]) for row in rows] == [(1, "a"), (2, "c")]
    assert recorder.recorded(5) == ["train"] and recorder.recorded(6) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(nll=[0.1, np.nan]), "no number"),
        (dict(nll=[0.1, -0.1]), "negative"),
        (dict(nll=[0.1]), "one length"),
        (dict(correct=[3, 0], samples=2), "more verdicts"),
        (dict(correct=[2, 0]), "more verdicts"),
        (dict(texts=[[("a", "right")], []]), "verdict 'right'"),
        (dict(ids=[4, 4]), "repeated"),
        (dict(perplexity=[1, 2]), "unknown columns"),
    ],
)
def test_a_wrong_value_is_refused_and_nothing_is_lost(tmp_path, values, words):
    recorder = opened(tmp_path)
    recorder.log(5, "train", [1, 2], [0.5, 0.6], [1, 1], 1, [[("a", "correct")]] * 2, epoch=1)
    files = lambda: {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    before = files()
    with pytest.raises(ValueError, match=words):
        recorder.log(5, "train", **dict(ids=[1, 2], texts=[[("b", "wrong")]] * 2, epoch=1) | values)
    assert files() == before and len(before) == 3


def test_another_run_in_the_folder_is_named(tmp_path):
    opened(tmp_path).log(5, "train", [1], [0.5], epoch=1)
    with pytest.raises(UserError, match=r"model\.preset: 'none' there, 'other' here"):
        opened(tmp_path, model="other")
    with pytest.raises(UserError, match="it may have rule, split"):
        opened(tmp_path / "new", threshold={"rule": "guess"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no run's folder"):
        opened(tmp_path / "mine")


def test_it_needs_no_jax():
    code = "import sys, premem_jax.recorder; print({'jax', 'torch', 'transformers', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
