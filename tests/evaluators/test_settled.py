"""Examples whose value can no longer change are not sampled, and the metric is the one that sampling them gives."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.analysis import predictors, premem, study
from premem_jax.analysis.conclusion import conclude
from premem_jax.analysis.curves import run_curves
from premem_jax.analysis.runs import Run
from premem_jax.analysis.threshold import given
from premem_jax.analysis.trace import evaluation_path, read_trace
from premem_jax.data.pipeline import Tokenized
from premem_jax.data.reader import train_batches
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.settled import Unsettled
from premem_jax.evaluators.suite import Suite
from tests import tiny
from tests.processes import finish, mistake

STEPS, EVERY, SAMPLES = 16, 4, 4
SAMPLING = dict(samples=SAMPLES, max_new_tokens=9, first_round=4, temperature=1.0, top_p=1.0, keep_texts=100, batch=7)


@functools.cache
def along():
    """Step → parameters of a run that ends with its examples memorized."""
    trainer = tiny.trainer()
    state, kept = trainer.init_state(trainer.random_parameters(0)), {}
    batches = train_batches(tiny.data(), 0, STEPS, batch=tiny.BATCH, seed=0, buckets=(tiny.CONTEXT,))
    for step, (_, arrays) in enumerate(batches, 1):
        state, _ = trainer.program(state, sharding.put_batch(tiny.one_device(), arrays), np.float32(1e-2))
        if step % EVERY == 0:
            kept[step] = jax.tree.map(np.asarray, state["params"])
    return kept


def suite(folder, skip=False, **rule):
    """The sampling evaluator comes first in the config: the suite must see to the order."""
    every = tuple(along())
    evals = dict(
        answers=dict(type="accuracy", split="train", epochs=every, skip_settled=skip, **SAMPLING),
        nll=dict(type="likelihood", split="train", epochs=every, batch=13),
        heldout=dict(type="likelihood", split="heldout", epochs=every[1:], batch=13),
    )
    unsettled = Unsettled(folder / "trace", RULE | rule)
    return Suite(evals, {"train": tiny.split(), "heldout": aside()}, tiny.run(), 1, STEPS, folder, unsettled)


RULE = dict(rule="none", split="heldout", quantile=0.5, perplexity=0.0)


@functools.cache
def aside():
    """Sixty examples, of which the model has seen a few: four of each five times."""
    data = tiny.data()
    examples = [dataclasses.replace(data.examples[i % 13], id=i) for i in range(65)]
    repeat = lambda rows: [rows[i % 13] for i in range(65)]
    return Split("heldout", Tokenized(examples, repeat(data.prompts), repeat(data.targets)), tiny.split().grader)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    whole = suite(folder)
    for step, params in along().items():
        whole.run(step, tiny.alone(jax.device_put(params)))
    return folder


@pytest.fixture(scope="module")
def threshold(full):
    """Between those examples that are solved before they are memorized by it, and those that are not."""
    train = read_trace(full / "trace").split("train")
    return float(np.exp(np.quantile(train.nll[1], 0.4)))


@pytest.fixture(scope="module")
def skipped(threshold, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skipped")
    for step, params in along().items():  # a new suite each time: all it knows is on disk
        given = dict(rule="given", perplexity=threshold)
        suite(folder, skip=True, **given).run(step, tiny.alone(jax.device_put(params)))
    return folder


def test_the_metric_is_the_same_and_fewer_samples_are_drawn(full, skipped, threshold):
    whole, less = read_trace(full / "trace"), read_trace(skipped / "trace")
    a, b = whole.split("train"), less.split("train")
    np.testing.assert_array_equal(a.nll, b.nll)
    assert not np.any(a.skipped) and np.all(b.samples + b.skipped == SAMPLES)
    spared_ME = b.samples == 0
    settled_ME = premem.settled(a.accuracy, a.nll, threshold)
    np.testing.assert_array_equal(spared_ME, settled_ME)
    assert 0 < spared_ME.sum() < spared_ME.size and a.correct[spared_ME].any(), "the case is too easy"
    for name in ("correct", "unparsed", "decided_on_host"):
        np.testing.assert_array_equal(getattr(b, name), np.where(spared_ME, 0, getattr(a, name)))
    for perplexity in (threshold, 1.5 * threshold):
        mine, theirs = (run_curves(trace, given(perplexity), test=None) for trace in (less, whole))
        for name in ("pre_memorization_accuracy", "fraction_memorized", "train_nll"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        assert theirs["pre_memorization_accuracy"].max() > 0.05


def test_train_accuracy_is_not_made_up(full, skipped, threshold):
    """It is unknown where something was skipped, and as ever where nothing was."""
    whole, less = read_trace(full / "trace"), read_trace(skipped / "trace")
    expected = whole.split("train").mean_accuracy
    some_M = (less.split("train").samples == 0).any(axis=1)
    assert some_M.any() and not some_M.all()
    np.testing.assert_array_equal(less.split("train").mean_accuracy, np.where(some_M, np.nan, expected))
    assert not np.isnan(expected).any()
    test = np.full(len(whole.steps), 0.5)
    mine, theirs = (predictors.evaluate(Run("run", "task", trace, test), threshold) for trace in (less, whole))
    for name, values in theirs.items():
        if name == "shrunk_estimate":  # its prior is that of fewer examples
            np.testing.assert_allclose(mine[name], values, atol=0.03)
            continue
        unknown_M = some_M & (name == "train_accuracy")
        np.testing.assert_array_equal(mine[name], np.where(unknown_M, np.nan, values), err_msg=name)


def test_an_evaluation_made_again_has_the_same_bits(skipped, threshold):
    """Also where later evaluations are there already."""
    for step in list(along())[1:3]:
        path = evaluation_path(skipped / "trace", step)
        texts = skipped / "samples" / f"step-{step:08d}.jsonl"
        before = path.read_bytes(), texts.read_bytes()
        path.unlink()
        given = dict(rule="given", perplexity=threshold)
        suite(skipped, skip=True, **given).run(step, tiny.alone(jax.device_put(along()[step])))
        assert (path.read_bytes(), texts.read_bytes()) == before


def test_a_study_at_a_lower_threshold_is_refused(skipped, threshold):
    trace = read_trace(skipped / "trace")
    run = Run("mine", "task", trace, np.full(len(trace.steps), 0.5))
    [chosen] = study.choose([run], "given", 0.01, threshold)
    assert chosen.perplexity == threshold
    with pytest.raises(UserError, match=r"Run 'mine' did not sample .* that the run was made with"):
        study.choose([run], "given", 0.01, 1 + (threshold - 1) / 4)


SKIP = "--config.evals.train_accuracy.skip_settled=true"


def test_the_default_rule_skips_while_the_run_goes_on(full, tmp_path):
    """Each evaluation by its own threshold; at the first one, which has nothing held out, nothing is skipped."""
    rule = dict(rule="heldout_quantile", quantile=0.6)
    for step, params in along().items():
        suite(tmp_path, skip=True, **rule).run(step, tiny.alone(jax.device_put(params)))
    whole, less = read_trace(full / "trace"), read_trace(tmp_path / "trace")
    mine, theirs = (conclude(trace, **RULE | rule) for trace in (less, whole))
    np.testing.assert_array_equal(mine.threshold.perplexity, theirs.threshold.perplexity)
    expected = premem.settled(whole.split("train").accuracy, whole.split("train").nll, theirs.threshold.perplexity)
    expected[0] = False
    np.testing.assert_array_equal(less.split("train").skipped > 0, expected)
    assert expected.any() and len(set(mine.threshold.perplexity)) == len(whole.steps) - 1
    np.testing.assert_array_equal(*(found.curves["pre_memorization_accuracy"] for found in (mine, theirs)))
    run = Run("mine", "task", less, np.full(len(less.steps), 0.5))
    assert study.choose([run], "heldout_quantile", 0.6, 0.0)
    with pytest.raises(UserError, match="did not sample"):
        study.choose([run], "heldout_quantile", 0.01, 0.0)


def test_without_a_threshold_nothing_is_skipped(tmp_path):
    message = mistake(
        finish(
            f"--workdir={tmp_path / 'run'}",
            f"--config.cache={tmp_path / 'cache'}",
            SKIP,
            "--config.threshold.rule=none",
        )
    )
    assert "evals.train_accuracy.skip_settled" in message and "set threshold.rule" in message


def test_a_run_reports_what_it_saved(straight, tmp_path):
    """The whole program, against the run that samples everything."""
    from tests.processes import Run as Program

    nll_ME = read_trace(straight.workdir / "trace").split("train").nll
    perplexity = float(np.exp(np.median(nll_ME[-1])))
    run = Program(tmp_path / "run", straight.cache)
    run.finish(SKIP, "--config.threshold.rule=given", f"--config.threshold.perplexity={perplexity}")
    mine, theirs = (read_trace(folder.workdir / "trace") for folder in (run, straight))
    summary = run.summary()
    assert summary["samples_skipped"] == mine.split("train").skipped.sum() > 0
    assert summary["train_accuracy"] is None and straight.summary()["samples_skipped"] == 0
    expected = run_curves(theirs, given(perplexity))["pre_memorization_accuracy"][-1]
    assert summary["pre_memorization_accuracy"] == expected
    assert "nan" not in (run.workdir / "report.html").read_text().split("base64")[0].lower().split("</h1>")[-1][:2000]
