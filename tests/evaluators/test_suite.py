"""Which evaluators run when, and what lands in the trace, with `more/mark.py`, which only leaves its mark."""

import dataclasses
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax import evaluators
from premem_jax.analysis.texts import sampled_texts
from premem_jax.analysis.trace import evaluation_path, evaluation_steps, read_trace
from premem_jax.errors import Stopped, UserError
from premem_jax.evaluators.suite import Suite, scheduled_steps
from premem_jax.models.decoder import build
from premem_jax.running import processes
from tests import tiny


@given(
    epochs=st.lists(st.fractions(0, 20, max_denominator=8), max_size=8),
    per_epoch=st.integers(1, 50),
    steps=st.integers(0, 300),
)
def test_scheduled_steps(epochs, per_epoch, steps):
    """Each entry within the run has a step at most half a step away, each step is so accounted for, or is the last."""
    due = scheduled_steps([float(epoch) for epoch in epochs], per_epoch, steps)
    wanted = [epoch * per_epoch for epoch in epochs if epoch * per_epoch <= steps]
    near = lambda step, want: abs(step - want) <= Fraction(1, 2)
    assert all(sum(near(step, want) for step in due) >= 1 for want in wanted)
    assert all(step == steps or any(near(step, want) for want in wanted) for step in due)
    assert due[-1] == steps and list(due) == sorted(set(due)) and all(isinstance(step, int) for step in due)


@pytest.fixture
def make(monkeypatch, tmp_path):
    def make(**evals):
        monkeypatch.setattr(evaluators, "__path__", [*evaluators.__path__, str(Path(__file__).parent / "more")])
        splits = {"train": tiny.split("train", tiny.data(13)), "test": tiny.split("test", tiny.data(4))}
        splits["heldout"] = tiny.split("heldout", tiny.data(5))
        run = tiny.run(model=build(tiny.CONFIG, dtype="bfloat16"))
        return Suite(evals, splits, run, steps_per_epoch=10, steps=30, workdir=tmp_path)

    return make


def mark(split, epochs, *columns, layout="train", kind="mark"):
    return dict(type=kind, split=split, epochs=epochs, layout=layout, columns=columns)


def test_one_file_per_due_step_with_what_was_due(make, tmp_path):
    suite = make(
        nll=mark("train", (0, 1), "target_nll"),
        solved=mark("train", (1, 2), "samples", layout="decode"),
        test=mark("test", (0.5,), "samples", "correct", layout="decode"),
    )
    assert suite.steps == {0, 5, 10, 20, 30}
    for step in sorted(suite.steps):
        suite.run(step, tiny.alone(tiny.parameters()))
    assert evaluation_steps(tmp_path / "trace") == [0, 5, 10, 20, 30]
    trace = read_trace(tmp_path / "trace")
    np.testing.assert_array_equal(trace.epochs, [0, 0.5, 1, 2, 3])
    train, test = trace.split("train"), trace.split("test")
    np.testing.assert_array_equal(train.example, tiny.data(13).ids)
    np.testing.assert_array_equal(test.example, tiny.data(4).ids)
    rows = np.arange(13)
    for m, step in enumerate(trace.steps):
        np.testing.assert_array_equal(train.nll[m], rows + step if step in (0, 10, 30) else np.full(13, np.nan))
        np.testing.assert_array_equal(train.samples[m], rows + step if step in (10, 20, 30) else 0 * rows)
        np.testing.assert_array_equal(test.correct[m], rows[:4] + step if step in (5, 30) else 0 * rows[:4])
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"step-{step:08d}.jsonl" for step in trace.steps]


@pytest.mark.parametrize("after", [1, 6, 13, 15])
def test_an_evaluation_that_was_stopped_continues_where_it_stood(make, tmp_path, monkeypatch, after):
    """Rows are not done twice, and the files are those of an evaluation that was not stopped."""
    evals = dict(
        nll=mark("train", (), "target_nll"), solved=mark("train", (), "samples"), test=mark("test", (), "samples")
    )
    files = lambda: {path: path.read_bytes() for kind in ("trace", "samples") for path in (tmp_path / kind).iterdir()}
    make(**evals).run(30, tiny.alone(tiny.parameters()))
    expected = files()
    shutil.rmtree(tmp_path / "trace")

    polls = []
    monkeypatch.setattr(processes, "poll", lambda: polls.append(1) or (len(polls) == after and stop()))
    first, second = make(**evals), make(**evals)
    with pytest.raises(Stopped):
        first.run(30, tiny.alone(tiny.parameters()))
    assert not (tmp_path / "trace").exists()
    second.run(30, tiny.alone(tiny.parameters()))
    assert files() == expected and not (tmp_path / "unfinished.npz").exists()
    done = lambda suite: [(name, row) for name, evaluator in suite.evaluators.items() for row in evaluator.rows]
    assert len(done(first)) == after
    sizes = {"nll": 13, "solved": 13, "test": 4}
    assert sorted(done(first) + done(second)) == sorted(
        (name, row) for name, size in sizes.items() for row in range(size)
    )


def test_a_damaged_unfinished_evaluation_starts_over(make, tmp_path, caplog):
    (tmp_path / "unfinished.npz").write_bytes(b"PK\3\4 no archive")
    suite = make(nll=mark("train", (), "target_nll"))
    suite.run(30, tiny.alone(tiny.parameters()))
    assert "starts over" in caplog.text
    np.testing.assert_array_equal(read_trace(tmp_path / "trace").split("train").nll[0], np.arange(13) + 30)


def stop():
    raise Stopped


def test_an_opening_ends_every_prompt_and_makes_a_split_of_its_own(make, tmp_path):
    suite = make(
        nll=mark("train", (), "target_nll"),
        opened=mark("train", (), "samples", layout="decode") | {"opening": " so we"},
    )
    suite.run(30, tiny.alone(tiny.parameters()))
    plain, opened = (suite.evaluators[name].split for name in ("nll", "opened"))
    extra = [tiny.tokenizer().encode_pairs([(text, " ####")])[0][0] for text in ("1 =", "1 = so we")]
    extra = list(extra[1][len(extra[0]) :])
    assert len(extra) == 2 and opened.name == "train after 'so we'"
    for before, after, target, same in zip(
        plain.data.prompts, opened.data.prompts, plain.data.targets, opened.data.targets, strict=True
    ):
        assert list(after) == [*before, *extra] and list(target) == list(same)
    assert [e.prompt for e in opened.data.examples] == [e.prompt + " so we" for e in plain.data.examples]
    read = read_trace(tmp_path / "trace")
    assert sorted(read.splits) == ["train", "train after 'so we'"]
    assert not read.split("train").samples.any()
    np.testing.assert_array_equal(read.split("train after 'so we'").samples[0], np.arange(13) + 30)


def test_other_words_make_a_split_of_their_own():
    data, tokenizer = tiny.data(3), tiny.tokenizer()
    split = tiny.split("train", data)
    with pytest.raises(UserError, match="'train': the task has no questions in other words"):
        split.perturbed(tokenizer, reworded=True)
    examples = [dataclasses.replace(e, reworded=f"3 + {e.prompt}") for e in data.examples]
    split = dataclasses.replace(split, data=dataclasses.replace(data, examples=examples))
    assert split.perturbed(tokenizer) is split
    for opening, name in (("", "train reworded"), (" so", "train reworded after 'so'")):
        asked = split.perturbed(tokenizer, opening, reworded=True)
        assert asked.name == name
        assert [e.prompt for e in asked.data.examples] == [e.reworded + opening for e in examples]
        pairs = tiny.tokenizer().encode_pairs([(e.reworded + opening, e.target) for e in examples])
        for prompt, target, expected in zip(asked.data.prompts, asked.data.targets, pairs, strict=True):
            assert (list(prompt), list(target)) == tuple(map(list, expected))


def test_an_evaluation_that_is_there_is_not_run_again(make, tmp_path):
    make(nll=mark("train", (0,), "target_nll")).run(30, tiny.alone(tiny.parameters()))
    suite = make(nll=mark("train", (0,), "target_nll"))
    for step in (0, 30, 0):
        suite.run(step, tiny.alone(tiny.parameters()))
    assert suite.evaluators["nll"].steps == [0]


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


FILES = {
    "trace": lambda folder, step: evaluation_path(folder / "trace", step),
    "texts": lambda folder, step: folder / "samples" / f"step-{step:08d}.jsonl",
}


@pytest.mark.parametrize("harm", [shorten, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_or_missing_evaluation_is_made_again_or_named(make, tmp_path, caplog, kind, harm):
    """From the kept weights of its step, or by the training that begins there; else it is lost."""
    evals = dict(nll=mark("train", (0, 1, 2), "target_nll"))
    files = lambda: {path: path.read_bytes() for kind in ("trace", "samples") for path in (tmp_path / kind).iterdir()}
    suite = make(**evals)
    for step in sorted(suite.steps):
        suite.run(step, tiny.alone(tiny.parameters()))
    expected = files()
    for step in (0, 10, 20):
        harm(FILES[kind](tmp_path, step))
    asked = []
    suite = make(**evals)
    suite.make_again([10, 20], lambda step: asked.append(step) or tiny.alone(tiny.parameters()))
    assert asked == suite.evaluators["nll"].steps == [10]
    suite.run(20, tiny.alone(tiny.parameters()))  # the training begins with this
    assert suite.evaluators["nll"].steps == [10, 20]
    read = read_trace(tmp_path / "trace")
    if kind == "texts":  # those of the lost step are for people alone
        assert read.lost == () and "lost" not in caplog.text
        assert files() == {path: data for path, data in expected.items() if path != FILES[kind](tmp_path, 0)}
        assert sampled_texts(tmp_path, 0, read.texts[0]) is None
    else:
        assert read.lost == (0,) and "the evaluation at step 0 is lost" in caplog.text
        assert "the evaluation at step 0 is lost" in read.notices[0]
        assert files() == {path: data for path, data in expected.items() if path != FILES[kind](tmp_path, 0)}
    for step in (10, 20, 30):
        texts = [{"example": row, "split": "train"} for row in range(13)]
        assert sampled_texts(tmp_path, step, read.texts[step]) == texts
    aside = len(list((tmp_path / "unreadable").glob("*"))) if (tmp_path / "unreadable").exists() else 0
    assert aside in (0, 3)


def test_a_suite_with_more_and_changed_evaluators_makes_these_alone(make, tmp_path):
    """Over the kept steps (10, 20) and the end (30). What was there stays, in files with new evaluators too."""
    nll, solved = mark("train", (0, 1, 2), "target_nll"), mark("train", (0, 1, 2), "skipped")
    suite = make(nll=nll, solved=solved, test=mark("test", (1,), "samples"))
    for step in sorted(suite.steps):
        suite.run(step, tiny.alone(tiny.parameters()))
    before, first = read_trace(tmp_path / "trace"), evaluation_path(tmp_path / "trace", 0).read_bytes()
    suite = make(
        nll=nll, solved=mark("train", (0, 1, 2), "samples", "correct"), more=mark("heldout", (1,), "target_nll")
    )
    suite.make_again([10, 20], lambda step: tiny.alone(tiny.parameters()))
    for step in (20, 30):  # the last of these that are kept, and the end
        suite.run(step, tiny.alone(tiny.parameters()))
    made = {name: evaluator.steps for name, evaluator in suite.evaluators.items()}
    assert made == {"nll": [], "solved": [10, 20, 30], "more": [10, 30]}
    after = read_trace(tmp_path / "trace")
    assert evaluation_path(tmp_path / "trace", 0).read_bytes() == first
    np.testing.assert_array_equal(after.split("train").nll, before.split("train").nll)
    np.testing.assert_array_equal(after.split("train").samples[1:], before.split("train").skipped[1:])
    np.testing.assert_array_equal(after.split("test").samples, before.split("test").samples)
    assert after.split("train").skipped.any(axis=1).tolist() == [True, False, False, False]
    rows = np.arange(5)
    np.testing.assert_array_equal(after.split("heldout").nll, [[np.nan] * 5, rows + 10, [np.nan] * 5, rows + 30])
    texts = {step: [row["split"] for row in sampled_texts(tmp_path, step, after.texts[step])] for step in (10, 20)}
    assert texts == {10: ["test"] * 4 + ["train"] * 13 + ["heldout"] * 5, 20: ["train"] * 13}
    assert after.earlier == {"solved": [0]}


def test_an_evaluation_whose_kept_weights_are_damaged_is_lost(make, tmp_path, caplog):
    suite = make(nll=mark("train", (0, 1), "target_nll"))
    suite.make_again([0, 10], lambda step: None)
    assert suite.evaluators["nll"].steps == [] and "the evaluation at step 0 is lost" in caplog.text


def test_a_step_where_nothing_is_due_runs_everything(make, tmp_path):
    """The evaluation of the last good state, when a run fails."""
    suite = make(nll=mark("train", (0,), "target_nll"), test=mark("test", (1,), "samples", layout="decode"))
    suite.run(17, tiny.alone(tiny.parameters()))
    trace = read_trace(tmp_path / "trace")
    np.testing.assert_array_equal(trace.split("train").nll[0], np.arange(13) + 17)
    np.testing.assert_array_equal(trace.split("test").samples[0], np.arange(4) + 17)


def test_an_unknown_type_split_or_option_is_named(make):
    with pytest.raises(UserError, match=r"evals\.odd: no evaluator of type 'likelyhood'; did you mean 'likelihood'"):
        make(odd=mark("train", (), kind="likelyhood"))
    with pytest.raises(UserError, match=r"evals\.odd: no split 'validation' .there are: train, test"):
        make(odd=mark("validation", ()))
    with pytest.raises(UserError, match=r"evals\.odd: mark has no option 'column'; did you mean 'columns'"):
        make(odd=mark("train", ()) | {"column": ()})
