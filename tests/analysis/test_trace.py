import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from premem_jax.analysis import trace
from premem_jax.errors import UserError
from premem_jax.running import atomic
from tests.analysis.traces import synthetic_splits


def write_run(folder, steps=(10, 20, 30)):
    splits = {step: synthetic_splits(0, m, examples=60) for m, step in enumerate(steps, 1)}
    for step in reversed(steps):
        trace.write_evaluation(folder, step, step / 10, splits[step])
    return splits


def test_what_is_written_is_read_back(tmp_path):
    splits = write_run(tmp_path)
    read = trace.read_trace(tmp_path)
    np.testing.assert_array_equal(read.steps, [10, 20, 30])
    np.testing.assert_array_equal(read.epochs, [1, 2, 3])
    assert sorted(read.splits) == ["test", "train"]
    for name in ("train", "test"):
        split = read.split(name)
        for m, step in enumerate((10, 20, 30)):
            written = splits[step][name]
            np.testing.assert_array_equal(split.example, written["example"])
            for column in ("samples", "correct", "unparsed", "decided_on_host"):
                np.testing.assert_array_equal(getattr(split, column)[m], written[column])
            np.testing.assert_array_equal(split.accuracy[m], written["correct"] / written["samples"])
            np.testing.assert_array_equal(split.nll[m], np.float32(written.get("target_nll", np.full(60, np.nan))))
    np.testing.assert_array_equal(read.split("train").tokens, 90)
    np.testing.assert_array_equal(read.split("test").tokens, 0)


def test_rows_are_sorted_and_bytes_depend_on_the_rows_alone(tmp_path):
    columns = synthetic_splits(0, 1, examples=50)
    shuffled = {}
    for name in reversed(columns):
        order = np.random.default_rng(1).permutation(50)
        shuffled[name] = {key: value[order] for key, value in reversed(columns[name].items())}
    for folder, splits in (("a", columns), ("b", shuffled)):
        trace.write_evaluation(tmp_path / folder, 5, 0.5, splits)
    a, b = (trace.evaluation_path(tmp_path / folder, 5) for folder in "ab")
    assert a.name == "step-00000005.parquet"
    assert a.read_bytes() == b.read_bytes()
    table = pq.read_table(b)
    keys = list(zip(table["split"].to_pylist(), table["example"].to_pylist(), strict=True))
    assert keys == sorted(keys)


def test_confidence_and_measures_are_read_back_where_they_were_measured(tmp_path):
    trace.write_evaluation(tmp_path, 1, 1, {"train": {"example": [3, 7]}}, {"a": 0.1, "b": float("nan")})
    columns = {"example": [7, 3], "log_confidence": [-0.5, np.nan], "skipped": [0, 5]}
    trace.write_evaluation(tmp_path, 2, 2, {"train": columns}, {"c": 3})
    trace.write_evaluation(tmp_path, 3, 3, {"train": {"example": [3]}})
    read = trace.read_trace(tmp_path)
    assert sorted(read.measures) == ["a", "c"]
    np.testing.assert_array_equal(read.measures["a"], [0.1, np.nan, np.nan])
    np.testing.assert_array_equal(read.measures["c"], [np.nan, 3, np.nan])
    unknown = [np.nan, np.nan]
    np.testing.assert_array_equal(read.split("train").log_confidence, [unknown, [np.nan, -0.5], unknown])
    np.testing.assert_array_equal(read.split("train").skipped, [[0, 0], [5, 0], [0, 0]])


def test_hashes_of_answers_are_read_back_whatever_the_number_of_samples(tmp_path):
    first = {"example": [7, 3], "answers": np.array([[2**32 - 1, 0], [5, 6]])}
    trace.write_evaluation(tmp_path, 1, 1, {"train": first, "test": {"example": [1]}})
    trace.write_evaluation(
        tmp_path, 2, 2, {"train": {"example": [3], "answers": [[8, 8, 9]]}, "heldout": {"example": [1]}}
    )
    read = trace.read_trace(tmp_path)
    expected = [[[5, 6, 0], [2**32 - 1, 0, 0]], [[8, 8, 9], [0, 0, 0]]]
    np.testing.assert_array_equal(read.split("train").answers, expected)
    assert read.split("train").answers.dtype == np.uint32 and not read.split("test").answers.any()


@pytest.mark.filterwarnings("error")
def test_examples_missing_at_an_evaluation_are_not_measured(tmp_path):
    trace.write_evaluation(tmp_path, 1, 1, {"train": {"example": [7, 3], "target_nll": [0.7, 0.3]}})
    both = {"example": [3, 5], "samples": [4, 0], "correct": [1, 0], "target_nll": [0.2, np.nan]}
    trace.write_evaluation(tmp_path, 2, 2, {"train": both})
    split = trace.read_trace(tmp_path).split("train")
    np.testing.assert_array_equal(split.example, [3, 5, 7])
    np.testing.assert_array_equal(split.nll, np.float32([[0.3, np.nan, 0.7], [0.2, np.nan, np.nan]]))
    np.testing.assert_array_equal(split.accuracy, [[np.nan] * 3, [0.25, np.nan, np.nan]])


def test_up_to_is_inclusive_and_an_empty_trace_is_an_error(tmp_path):
    write_run(tmp_path)
    np.testing.assert_array_equal(trace.read_trace(tmp_path, up_to=20).steps, [10, 20])
    with pytest.raises(UserError, match="no evaluation at or before step 9"):
        trace.read_trace(tmp_path, up_to=9)
    assert trace.evaluation_steps(tmp_path / "nowhere") == []


def test_an_unknown_split_is_named_with_the_known_ones(tmp_path):
    write_run(tmp_path)
    with pytest.raises(UserError, match="no split 'valid'; it has: test, train"):
        trace.read_trace(tmp_path).split("valid")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"example": [1, 2], "samples": [1]}, "one length"),
        ({"example": [1, 2], "answers": [[1]]}, "one length"),
        ({"example": [1, 1]}, "id 1 is repeated"),
        ({"example": [1], "samples": [4], "correct": [3], "unparsed": [2]}, "more verdicts"),
        ({"example": [1], "samples": [4], "decided_on_host": [5]}, "decided"),
        ({"example": [1], "samples": [4], "skipped": [4]}, "both sampled and skipped"),
        ({"example": [1], "samples": [-1], "correct": [-1]}, "negative"),
        ({"example": [1], "loss": [0.1]}, "loss"),
        ({"target_nll": [0.1]}, "no column 'example'"),
        ({"example": np.array([], np.int64)}, "no rows"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        trace.write_evaluation(tmp_path, 1, 1, {"train": columns})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    atomic.write_text(path, "old")

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        atomic.write_text(path, "new")
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("file.txt", "old")]


def test_a_killed_write_is_passed_over(tmp_path, monkeypatch):
    write_run(tmp_path)

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:  # as kill -9 between the write and the rename: nothing tidies up
        patch.setattr(os, "replace", killed)
        patch.setattr(os, "remove", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            trace.write_evaluation(tmp_path, 40, 4, synthetic_splits(0, 4))
    assert len(list(tmp_path.iterdir())) == 4
    assert trace.evaluation_steps(tmp_path) == [10, 20, 30]


def test_a_file_cut_short_is_named_with_the_mend(tmp_path):
    write_run(tmp_path)
    path = trace.evaluation_path(tmp_path, 20)
    path.write_bytes(path.read_bytes()[:-20])
    for read in (trace.evaluation_steps, trace.read_trace):
        with pytest.raises(UserError, match=r"step-00000020\.parquet.*start its run again"):
            read(tmp_path)


def test_damage_is_found_or_harmless(tmp_path):
    """No flipped bit anywhere in the file changes a value in silence, and each that is noticed names the file."""
    columns = {"example": np.arange(40), "target_nll": np.linspace(0.1, 1, 40), "samples": np.full(40, 5)}
    trace.write_evaluation(tmp_path, 1, 0.25, {"train": columns, "test": columns}, {"gradient_variance": 1.25})
    path = trace.evaluation_path(tmp_path, 1)
    good, expected = path.read_bytes(), trace.read_trace(tmp_path)
    found = 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        try:
            read = trace.read_trace(tmp_path)
        except UserError as error:
            assert path.name in str(error)
            found += 1
        else:
            assert read.epochs == [0.25] and read.measures == {"gradient_variance": [1.25]}
            assert read.splits.keys() == expected.splits.keys()
            for name, split in expected.splits.items():
                for key, values in vars(split).items():
                    np.testing.assert_array_equal(getattr(read.split(name), key), values, err_msg=f"{name} {key} {at}")
    assert found > len(good) / 2


def test_another_format_version_is_refused(tmp_path):
    write_run(tmp_path)
    path = trace.evaluation_path(tmp_path, 10)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"premem_jax.trace.format": "9"}), path)
    with pytest.raises(UserError, match="version 9"):
        trace.read_trace(tmp_path)
    pq.write_table(pa.table({"step": [10]}), path)
    with pytest.raises(UserError, match="no version"):
        trace.read_trace(tmp_path)


def test_a_renamed_file_and_mixed_runs_are_refused(tmp_path):
    write_run(tmp_path)
    trace.evaluation_path(tmp_path, 10).rename(trace.evaluation_path(tmp_path, 11))
    with pytest.raises(UserError, match="does not hold the step"):
        trace.read_trace(tmp_path)
    for step in (1, 2):
        one = {"example": [4], "target_tokens": [10 * step]}
        trace.write_evaluation(tmp_path / "mixed", step, step, {"train": one})
    with pytest.raises(UserError, match="example 4 of split 'train' changes its number of target tokens"):
        trace.read_trace(tmp_path / "mixed")


def test_analysis_needs_no_jax():
    modules = ["trace", "premem", "threshold", "curves", "study", "readers"]
    code = f"import sys; {'; '.join(f'import premem_jax.analysis.{name}' for name in modules)}; "
    code += "print([name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'flax', 'matplotlib')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
