"""The same run through every layout, the traps of the published files, and what is refused."""

import json
import math
import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.analysis import premem, trace
from premem_jax.analysis.readers import read_runs, release, table
from premem_jax.errors import UserError
from tests.analysis.traces import FOLDER, released_run, synthetic_splits
from tests.shared import shared

QUARTER = "gsm8k_orig_12epochs_quarter_lr2e-05_bs128"


def made_up(seed=0, examples=120, count=60, steps=(10, 20), samples=(5, 10)) -> dict[str, np.ndarray]:
    """The arrays of one published half run of 120 questions, `count` of which it was trained on, and 40 test ones."""
    rng = np.random.default_rng(seed)
    trained = rng.permutation(examples)[:count]
    arrays = {"subsample_idxs": trained}
    for m, step in enumerate(steps, 1):
        nll = rng.gamma(4, 0.1, examples)
        nll[trained] *= 0.3**m
        arrays[f"checkpoint-{step}/train_perplexities"] = np.exp(nll)
        arrays[f"checkpoint-{step}/train_num_tokens"] = np.full(examples, 90)
        for n in samples:
            arrays[f"checkpoint-{step}/train_answer_types{n}_seed2"] = rng.integers(0, 3, (examples, n))
        arrays[f"checkpoint-{step}/test_answer_types5_seed2_temp0.8"] = rng.integers(0, 3, (40, 5))
    return arrays


def write_release(folder, arrays, name="math_orig_2epochs_half_lr2e-05_bs24"):
    for key, array in arrays.items():
        path = folder / name / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    return folder


def rows_of(run) -> dict[str, np.ndarray]:
    """The columns of the plain table of `run`."""
    parts = []
    for which in {"train", "heldout"} & run.trace.splits.keys():
        split = run.trace.split(which)
        for m, step in enumerate(run.trace.steps):
            count = len(split.example)
            columns = dict(example=split.example, nll=split.nll[m], n_samples=split.samples[m])
            columns |= dict(n_correct=split.correct[m], run=np.full(count, run.name), step=np.full(count, step))
            columns |= dict(split=np.full(count, which), epoch=np.full(count, run.trace.epochs[m]))
            columns |= dict(task=np.full(count, run.task), test_accuracy=np.full(count, run.test_accuracy[m]))
            parts.append(columns)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same(a, b, rtol=0.0):
    np.testing.assert_array_equal(a.trace.steps, b.trace.steps)
    np.testing.assert_allclose(a.trace.epochs, b.trace.epochs, rtol=1e-6)
    np.testing.assert_allclose(a.test_accuracy, b.test_accuracy, rtol=rtol or 1e-12)
    for name in ("train", "heldout"):
        mine, theirs = a.trace.split(name), b.trace.split(name)
        np.testing.assert_array_equal(mine.example, theirs.example)
        np.testing.assert_allclose(mine.nll, theirs.nll, rtol=rtol)
        np.testing.assert_array_equal(mine.samples, theirs.samples)
        np.testing.assert_array_equal(mine.correct, theirs.correct)


# ---- One run, four layouts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quarter():
    [run] = read_runs(shared(f"{FOLDER}/{QUARTER}.npz"))
    return run


def test_a_packed_run_is_what_its_arrays_say(quarter):
    known = released_run("12ep quarter lr2e-05")
    assert (quarter.name, quarter.task) == (QUARTER, "gsm8k")
    assert math.log(math.log(quarter.published)) == pytest.approx(-2.3)
    np.testing.assert_array_equal(quarter.trace.epochs, [2, 4, 6, 8, 10, 12])
    for split, which in (("train", known["trained"]), ("heldout", ~known["trained"])):
        mine = quarter.trace.split(split)
        np.testing.assert_array_equal(mine.example, np.flatnonzero(which))
        np.testing.assert_array_equal(mine.nll, known["train_nll"][:, which])
        np.testing.assert_array_equal(mine.accuracy, known["train_accuracy"][:, which])
    tokens = np.concatenate([quarter.trace.split(name).tokens for name in ("train", "heldout")])
    assert (np.median(tokens), tokens.max()) == (94, 364)  # a separate script over the release
    np.testing.assert_allclose(quarter.test_accuracy, known["test_accuracy"].mean(axis=1))


def test_an_unpacked_run_is_the_packed_one(quarter, tmp_path):
    with np.load(shared(f"{FOLDER}/{QUARTER}.npz")) as file:
        arrays = {key.replace("__", "/"): file[key] for key in file.files}
    folder = write_release(tmp_path / "release" / "ckpts", arrays, QUARTER)
    for place in (folder, tmp_path / "release", folder / QUARTER, folder / QUARTER / "checkpoint-28"):
        [run] = read_runs(place)
        assert_same(run, quarter)
        assert (run.name, run.notes) == (quarter.name, quarter.notes)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_table_is_the_run(quarter, tmp_path, kind):
    columns = rows_of(quarter)
    columns["gradient_variance"] = columns["step"] * 0.5
    order = np.random.default_rng(0).permutation(len(columns["step"]))
    columns = {key: column[order] for key, column in columns.items()}
    if kind == "npz":
        np.savez_compressed(tmp_path / "runs.npz", **columns)
    else:
        pq.write_table(pa.table(columns), tmp_path / "runs.parquet")
    [run] = read_runs(tmp_path)
    assert_same(run, quarter)
    assert (run.name, run.task, run.published) == (QUARTER, "gsm8k", None)
    np.testing.assert_array_equal(run.measures["gradient_variance"], quarter.trace.steps * 0.5)


def write_workdir(folder, run, model="tiny"):
    for m, step in enumerate(run.trace.steps):
        splits = {}
        for name, split in run.trace.splits.items():
            columns = dict(example=split.example, target_nll=split.nll[m], target_tokens=split.tokens)
            splits[name] = columns | dict(
                samples=split.samples[m], correct=split.correct[m], unparsed=split.unparsed[m]
            )
        trace.write_evaluation(folder / "trace", int(step), run.trace.epochs[m], splits)
    (folder / "config.json").write_text(json.dumps(dict(data=dict(task=run.task), model=dict(preset=model))))


def test_run_folders_are_the_run(quarter, tmp_path):
    write_workdir(tmp_path / "sweep" / "one", quarter)
    write_workdir(tmp_path / "sweep" / "two", quarter)
    both = read_runs(tmp_path)
    assert [(run.name, run.task) for run in both] == [("one", "gsm8k"), ("two", "gsm8k")]
    assert_same(both[0], quarter, rtol=1e-6)
    for place in (tmp_path / "sweep" / "two", tmp_path / "sweep" / "two" / "trace"):
        assert [run.name for run in read_runs(place)] == ["two"]
    write_workdir(tmp_path / "other" / "one", quarter, model="big")
    assert sorted((run.name, run.task) for run in read_runs(tmp_path)) == [
        ("other/one", "gsm8k big"),
        ("sweep/one", "gsm8k tiny"),
        ("sweep/two", "gsm8k tiny"),
    ]


# ---- The traps of the published files --------------------------------------------------------------------------------


def test_a_run_folder_says_which_split_its_threshold_comes_from(tmp_path):
    """The published studies read it off the test solutions."""
    splits = synthetic_splits(0, 1)
    splits["test"] |= {"target_nll": np.linspace(0.1, 0.9, 400), "target_tokens": np.full(400, 90)}
    config = {"data": {"task": "made up"}, "model": {"preset": "tiny"}, "threshold": {"split": "test"}}
    trace.write_evaluation(tmp_path / "trace", 1, 1, splits)
    (tmp_path / "config.json").write_text(json.dumps(config))
    [run] = read_runs(tmp_path)
    np.testing.assert_allclose(run.heldout_nll, splits["test"]["target_nll"][None], rtol=1e-6)
    config["threshold"]["split"] = "heldout"
    (tmp_path / "config.json").write_text(json.dumps(config))
    [run] = read_runs(tmp_path)
    assert run.heldout_nll is None


def test_the_published_running_maximum_comes_out():
    """One run ships its pre-memorization accuracy per example, at ln NLL -2.5."""
    name = "gsm8k_orig_3epochs_full_lr2e-05_bs128"
    [run] = read_runs(shared(f"{FOLDER}/{name}.npz"))
    with np.load(shared(f"{FOLDER}/{name}.npz")) as file:
        published = file["unmemorized_acc_cummax_all"]
    got = premem.pre_memorization_accuracy(run.train.accuracy, run.train.nll, math.exp(math.exp(-2.5)))
    np.testing.assert_allclose(got, published, rtol=0, atol=1e-12)


def test_sorted_samples_and_several_files_are_noted_and_the_choice_is_kept(quarter):
    assert [note for note in quarter.notes if "sorted" in note] and quarter.train.samples.max() == 5
    [most] = read_runs(shared(f"{FOLDER}/{QUARTER}.npz"), train_samples="most")
    assert most.train.samples.min() == 10
    assert [note for note in most.notes if "the one with 10 samples" in note]


def test_samples_in_the_order_drawn_are_not_noted(tmp_path):
    [run] = read_runs(write_release(tmp_path, made_up()))
    assert not [note for note in run.notes if "sorted" in note]


def test_verdict_0_is_correct_and_2_unparsed(tmp_path):
    arrays = made_up(samples=(4,))
    arrays["checkpoint-10/train_answer_types4_seed2"][:] = [0, 0, 1, 2]
    [run] = read_runs(write_release(tmp_path, arrays))
    assert np.all(run.train.correct[0] == 2) and np.all(run.train.unparsed[0] == 1)
    assert run.task == "math" and math.log(math.log(run.published)) == pytest.approx(-1.7)


@pytest.mark.parametrize("subset", release.SUBSETS)
def test_an_index_no_better_than_chance_is_found_out(tmp_path, subset):
    arrays = made_up(examples=1000, count=500)
    true = np.sort(arrays["subsample_idxs"])
    arrays["subsample_idxs"] = np.random.default_rng(9).permutation(1000)[:500]
    [run] = read_runs(write_release(tmp_path, arrays), subset=subset)
    notes = [note for note in run.notes if "no more than chance" in note]
    assert len(notes) == 1
    if subset == "file":
        np.testing.assert_array_equal(run.train.example, np.sort(arrays["subsample_idxs"]))
    else:
        assert len(run.train.example) == 500
        assert np.isin(run.train.example, true).mean() > 0.95
    [good] = read_runs(write_release(tmp_path / "good", made_up(examples=1000, count=500)), subset=subset)
    np.testing.assert_array_equal(good.train.example, true)
    assert not [note for note in good.notes if "chance" in note]


def test_a_permutation_of_all_examples_is_a_full_run(tmp_path):
    [run] = read_runs(write_release(tmp_path, made_up(count=120), "gsm8k_orig_2epochs_full_lr1_bs1"))
    np.testing.assert_array_equal(run.train.example, range(120))
    assert "heldout" not in run.trace.splits and run.heldout_nll is None


# ---- What is refused -------------------------------------------------------------------------------------------------


def message_of(path, **choices) -> str:
    with pytest.raises(UserError) as error:
        read_runs(path, **choices)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_without_runs_is_told_what_it_may_hold(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    message = message_of(tmp_path)
    assert "no trace in it" in message and "step-*.parquet" in message and "n_correct" in message
    assert "no trace in it" in message_of(tmp_path / "notes.txt")
    assert "no such file" in message_of(tmp_path / "nowhere")


def test_two_layouts_at_once_are_named(tmp_path, quarter):
    write_release(tmp_path, made_up())
    write_workdir(tmp_path / "ours", quarter)
    message = message_of(tmp_path)
    assert "several layouts" in message and "ours" in message and "math_orig" in message


def without(key):
    return lambda arrays: arrays.pop(key)


def change(key, array):
    return lambda arrays: arrays.update({key: array})


@pytest.mark.parametrize(
    "spoil, words",
    [
        (without("checkpoint-20/train_perplexities"), ["checkpoint-20/train_perplexities"]),
        (without("checkpoint-10/test_answer_types5_seed2_temp0.8"), ["checkpoint-10", "test_answer_types"]),
        (without("subsample_idxs"), ["half run", "subsample_idxs"]),
        (change("subsample_idxs", np.array([1, 1])), ["subsample_idxs", "different"]),
        (change("subsample_idxs", np.array([1, 120])), ["subsample_idxs", "119"]),
        (change("checkpoint-10/train_perplexities", np.full(120, 0.9)), ["train_perplexities", "at least 1"]),
        (change("checkpoint-10/train_perplexities", np.full(120, np.nan)), ["train_perplexities", "at least 1"]),
        (change("checkpoint-10/train_perplexities", np.full(99, 2.0)), ["different numbers of examples"]),
        (change("checkpoint-20/train_answer_types5_seed2", np.full((120, 5), 7)), ["types5_seed2", "0, 1 or 2"]),
        (change("checkpoint-20/train_answer_types5_seed2", np.full((120, 4), 1)), ["types5_seed2", "5 verdicts"]),
        (change("checkpoint-20/train_answer_types5_seed2", np.array([{}, {}])), ["types5_seed2", "cannot be read"]),
    ],
)
def test_published_files_that_do_not_fit_are_named(tmp_path, spoil, words):
    arrays = made_up()
    spoil(arrays)
    message = message_of(write_release(tmp_path, arrays))
    assert [word for word in words if word not in message] == [], message
    assert str(tmp_path) in message


@pytest.mark.parametrize("file", ["checkpoint-10/train_perplexities.npy", "packed"])
def test_a_damaged_file_is_named(tmp_path, file):
    if file == "packed":
        path = tmp_path / "gsm8k_orig_1epochs_full_lr1_bs1.npz"
        np.savez_compressed(path, **{key.replace("/", "__"): array for key, array in made_up().items()})
        data = bytearray(path.read_bytes())
        data[300:500] = bytes(200)
        path.write_bytes(data)
    else:
        path = next(write_release(tmp_path, made_up()).glob(f"*/{file}"))
        path.write_bytes(path.read_bytes()[:200])
    assert "cannot be read" in message_of(tmp_path)


@pytest.mark.parametrize("choice", [dict(train_samples="5"), dict(test_samples="all"), dict(subset="mine")])
def test_an_unknown_choice_is_named(tmp_path, choice):
    [(key, value)] = choice.items()
    assert f"release.{key}={value!r}" in message_of(write_release(tmp_path, made_up()), **choice)


def small_table(**columns) -> dict[str, np.ndarray]:
    made = dict(run=np.array(["a"] * 4), step=np.array([1, 1, 2, 2]), example=np.array([0, 1, 0, 1]))
    made |= dict(nll=np.array([0.5, 0.4, np.nan, 0.1]), n_samples=np.full(4, 5), n_correct=np.array([0, 1, 2, 5]))
    made |= dict(test_accuracy=np.array([0.2, 0.2, np.nan, np.nan]))
    return {key: column for key, column in (made | columns).items() if column is not None}


def test_the_smallest_table(tmp_path):
    np.savez(tmp_path / "runs.npz", **small_table())
    [run] = read_runs(tmp_path / "runs.npz")
    assert (run.name, run.task, run.measures, list(run.trace.splits)) == ("a", "table", {}, ["train"])
    np.testing.assert_array_equal(run.trace.epochs, [1, 2])
    np.testing.assert_array_equal(run.test_accuracy, [0.2, np.nan])
    np.testing.assert_array_equal(run.train.nll, [[0.5, 0.4], [np.nan, 0.1]])
    np.testing.assert_array_equal(run.train.accuracy, [[0, 0.2], [0.4, 1]])


@pytest.mark.parametrize(
    "columns, words",
    [
        (dict(nll=None), ["no column nll"]),
        (dict(nll=np.zeros(3)), ["one length"]),
        (dict(nll=np.array([0.5, -0.4, 0.1, 0.1])), ["row 2", "nll is negative"]),
        (dict(nll=np.array(["a"] * 4)), ["'nll'", "numbers"]),
        (dict(step=np.array([1.0, 1, 2, 2])), ["'step'", "whole numbers"]),
        (dict(n_correct=np.array([0, 1, 6, 5])), ["row 3", "n_correct"]),
        (dict(example=np.array([0, 0, 0, 1])), ["row 2", "same run, split, step and example"]),
        (dict(test_accuracy=np.array([0.2, 0.3, 0.1, 0.1])), ["several values of 'test_accuracy'", "step 1"]),
        (dict(run=np.array([b"a", b"a\xff", b"b", b"b"])), ["'run'", "no text"]),
        (dict(step=np.array([1, 1, 2, 2**63], np.uint64)), ["row 4", "step is above"]),
        (dict(test_accuracy=np.full(4, 20.0)), ["between 0 and 1"]),
        (dict(split=np.array(["train", "test", "train", "train"])), ["row 2", "heldout"]),
        (dict(split=np.array(["heldout"] * 4)), ["no example of split 'train'"]),
        (dict(task=np.array(["a", "a", "b", "b"])), ["several tasks: 'a', 'b'"]),
        (dict(colour=np.array(["a"] * 4)), ["'colour'", "numbers"]),
        ({"n" * 60_000: np.array(["a"] * 4)}, ["'nnn", "…'", "numbers"]),
        (dict(split=np.array(["n" * 100_000] * 4)), ["row 1", "split is none of"]),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path, columns, words):
    np.savez(tmp_path / "runs.npz", **small_table(**columns))
    message = message_of(tmp_path)
    assert [word for word in words if word not in message] == [], message
    assert "runs.npz" in message and len(message) < 500


def test_a_run_in_two_tables_and_a_damaged_table(tmp_path):
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, **small_table())
    assert "another file" in message_of(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"PK not a zip file")
    assert "b.npz cannot be read" in message_of(tmp_path)
    shutil.move(tmp_path / "b.npz", tmp_path / "b.parquet")
    assert "b.parquet cannot be read" in message_of(tmp_path)


def test_a_run_folder_without_its_config_is_named(tmp_path, quarter):
    write_workdir(tmp_path / "one", quarter)
    (tmp_path / "one" / "config.json").unlink()
    assert "config.json" in message_of(tmp_path)
    (tmp_path / "one" / "config.json").write_text('{"data": {}}')
    assert "no 'task'" in message_of(tmp_path)


def test_documented_columns_are_the_required_ones():
    assert all(f"`{name}`" in table.read.__doc__ for name in table.REQUIRED)


def test_the_index_of_pandas_is_no_predictor(tmp_path):
    columns = small_table() | {"__index_level_0__": np.array([7, 3, 9, 1])}
    pq.write_table(pa.table(columns), tmp_path / "runs.parquet")
    [run] = read_runs(tmp_path)
    assert run.measures == {}


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", ["npz", "parquet", "release"])
def test_a_damaged_file_is_read_as_a_strict_reader_would_or_refused(tmp_path_factory, kind, data):
    folder = tmp_path_factory.mktemp("damage")
    path = folder / ("runs.parquet" if kind == "parquet" else "gsm8k_orig_1epochs_half_lr1_bs1.npz")
    if kind == "parquet":
        pq.write_table(pa.table(small_table()), path, write_page_checksum=True)
    elif kind == "npz":
        np.savez_compressed(path, **small_table())
    else:
        np.savez_compressed(
            path, **{key.replace("/", "__"): array for key, array in made_up(examples=30, count=10).items()}
        )
    [right] = read_runs(path)
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del whole[at:]
    path.write_bytes(whole)
    try:
        [read] = read_runs(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        if kind != "parquet":  # whose footer has no checksum
            np.testing.assert_array_equal(read.train.nll, right.train.nll)
            np.testing.assert_array_equal(read.train.correct, right.train.correct)


def test_long_names_take_no_room(tmp_path):
    """Arrays of text in NumPy have the width of their longest: 400 MB for these rows."""
    count = 1000
    name = pa.array(["n" * 100_000] * count).dictionary_encode()
    numbers = dict(example=np.arange(count), nll=np.ones(count), n_samples=np.ones(count, int))
    same = dict(step=np.ones(count, int), n_correct=np.ones(count, int), test_accuracy=np.full(count, 0.5))
    pq.write_table(pa.table({"run": name, **numbers, **same}), tmp_path / "runs.parquet")
    tracemalloc.start()
    [run] = read_runs(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run.name == "n" * 100_000 and peak < 200e6
