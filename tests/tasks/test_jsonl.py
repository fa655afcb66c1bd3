"""People's own rows as a task: files, fields, answers, splits, and a run on them."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import finetune as recipe
from premem_jax.errors import UserError
from premem_jax.experiments import finetune
from premem_jax.tasks import task as tasks

SIZES = dict(train=0, heldout=0, test=0, seed=0, cache="")


def write(folder, split, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sums(count, start=0):
    return [dict(question=f"{i} + {i} ?", answer=f"it is {2 * i}") for i in range(start, start + count)]


def load(folder, **changes):
    return tasks.load("jsonl", path=str(folder), **SIZES | changes)


def test_a_folder_of_files_is_its_splits(tmp_path):
    for split, rows in dict(train=sums(9), heldout=sums(4, 100), test=sums(5, 200)).items():
        write(tmp_path, split, rows)
    task = load(tmp_path)
    assert {name: len(found) for name, found in task.splits.items()} == dict(train=9, heldout=4, test=5)
    example = task.splits["test"][0]
    assert (example.prompt, example.target, example.answer) == ("200 + 200 ?\nAnswer:", " it is 400", "400")
    assert task.grader.name == "number"


def test_one_file_is_split_by_seed(tmp_path):
    write(tmp_path, "train", sums(100))
    ids = lambda task: {name: [e.id for e in found] for name, found in task.splits.items()}
    first = ids(load(tmp_path, heldout=20))
    assert {name: len(found) for name, found in first.items()} == dict(train=30, heldout=20, test=50)
    assert sorted(i for found in first.values() for i in found) == list(range(100))
    assert first == ids(load(tmp_path, heldout=20)) != ids(load(tmp_path, heldout=20, seed=1))
    assert ids(load(tmp_path / "train.jsonl", heldout=20)) == first


def test_parquet_and_jsonl_give_the_same_examples(tmp_path):
    rows = [row | {"id": f"row {i}"} for i, row in enumerate(sums(12))]
    write(tmp_path / "a", "train", rows)
    (tmp_path / "b").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b" / "train.parquet")
    assert load(tmp_path / "a").splits == load(tmp_path / "b").splits
    assert load(tmp_path / "a").splits["train"][0].metadata["id"].startswith("row ")


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([{"prompt": "Q", "target": " yes"}], {}, ("Q", " yes", "yes")),
        ([{"prompt": "Q", "target": " so 3", "answer": 3.0}], {}, ("Q", " so 3", "3")),
        ([{"problem": "P", "solution": r"\boxed{x}"}], {}, ("P\nAnswer:", r" \boxed{x}", "x")),
        ([{"question": "Q", "answer": 4}], {}, ("Q\nAnswer:", " 4", "4")),
        ([{"question": "Q", "answer": 1e-05}], {}, ("Q\nAnswer:", " 0.00001", "0.00001")),
        ([{"ask": "Q", "say": "(B)"}], dict(prompt="{ask}\n", target="{say}"), ("Q\n", "(B)", "B")),
        ([{"question": "Q", "answer": "no\nred"}], dict(grader="last_line"), ("Q\nAnswer:", " no\nred", "red")),
        ([{"question": "Q", "answer": "red"}], dict(grader="none"), ("Q\nAnswer:", " red", "")),
    ],
)
def test_forms_of_rows(tmp_path, rows, options, expected):
    write(tmp_path, "train", rows)
    write(tmp_path, "test", rows)
    [example] = load(tmp_path, **options).splits["train"]
    assert (example.prompt, example.target, example.answer) == expected


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"q": "a", "a": "b"}, {}, r"train.jsonl:2: not a row .*question, answer.*it has q, a"),
        ({"prompt": 3, "target": "b"}, {}, "train.jsonl:2: prompt must be a string"),
        ({"question": ["a"], "answer": "b"}, {}, "train.jsonl:2: question must be a string"),
        ({"question": "a", "answer": "b"}, dict(grader="number"), None),
        ({"prompt": "a", "target": " "}, {}, "row 1: the target is empty|train.jsonl:2: no answer"),
        ({"prompt": "a", "target": " b", "answer": True}, dict(grader="exact"), "train.jsonl:2: the answer must be"),
        ({"prompt": "a", "target": " b"}, dict(grader="gsm8k"), "train.jsonl:2: no answer by the grader gsm8k"),
        ({"prompt": "a", "target": " b"}, dict(test=7), "7 of 2 rows leave none"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, options, message):
    write(tmp_path, "train", [{"prompt": "a", "target": " #### 1", "question": "a", "answer": "1 #### 1"}, row])
    if message is None:  # an answer that is no number is compared as a text
        assert [e.answer for e in rows_of(load(tmp_path, **options))] == ["1", "b"]
        return
    with pytest.raises(UserError, match=message):
        load(tmp_path, **options)


def rows_of(task):
    return sorted((e for found in task.splits.values() for e in found), key=lambda e: e.id)


def test_an_empty_cell_of_numbers_is_no_text(tmp_path):
    """As pandas writes it: NaN, which JSON has not."""
    pq.write_table(pa.table(dict(question=["a", "b"], answer=[1.5, math.nan])), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train.parquet, row 1: answer is empty or no number \(nan"):
        load(tmp_path)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match="no train"):
        load(tmp_path)
    with pytest.raises(UserError, match="path is empty"):
        load("")
    write(tmp_path, "train", [])
    with pytest.raises(UserError, match="the file is empty"):
        load(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="keep one"):
        load(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match="not a whole Parquet file"):
        load(tmp_path)
    with pytest.raises(UserError, match="prompt='x': the task arithmetic has no use for it"):
        tasks.load("arithmetic", path="", prompt="x", **SIZES | dict(train=1, test=1))


def test_a_run_on_own_rows_ends_in_a_report(tmp_path):
    """120 rows, no checkpoint, no test file: the command of the recipe, with a smaller model."""
    write(tmp_path / "data", "train", sums(120))
    c = recipe.get_config("epochs=1,samples=2,max_new_tokens=8")
    c.data.path, c.cache, c.model.preset = str(tmp_path / "data"), str(tmp_path / "cache"), "llama_tiny"
    c.tokenizer.update(kind="word", vocab_size=256)
    summary = finetune.run(c.lock(), tmp_path / "run")
    assert summary["train_examples"] == 70 and summary["evaluations"] == 2
    assert summary["threshold"] > 1 and 0 <= summary["pre_memorization_accuracy"] <= 1
    assert (tmp_path / "run" / "report.html").exists()
