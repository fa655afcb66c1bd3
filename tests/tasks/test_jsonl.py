"""People's own rows as a task: files, fields, answers, splits, and a run on them."""

import gzip
import json
import math
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import finetune as recipe
from premem_jax.data.rows import read
from premem_jax.errors import UserError
from premem_jax.experiments import finetune
from premem_jax.tasks import jsonl
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


def test_large_files_are_checked_once(tmp_path, monkeypatch):
    said = [dict(messages=[dict(role="user", content="7 ?"), dict(role="assistant", content=" seven")], answer="seven")]
    folder = write(write(tmp_path / "rows", "train", sums(30)), "test", sums(5, 200))
    chat = write(tmp_path / "chat", "train", said * 9)
    plain = [load(place, test=3) for place in (folder, chat)]
    monkeypatch.setattr(jsonl, "LARGE", 0)
    kept = dict(cache=str(tmp_path / "cache"), test=3)
    first = [load(place, **kept) for place in (folder, chat)]
    checked = jsonl._checked
    monkeypatch.setattr(jsonl, "_checked", lambda *_: pytest.fail("checked again"))
    again = [load(place, **kept) for place in (folder, chat)]
    for tasks_ in zip(plain, first, again, strict=True):
        assert all(task.splits == tasks_[0].splits for task in tasks_)
        assert {task.grader.name for task in tasks_} == {tasks_[0].grader.name}
    monkeypatch.setattr(jsonl, "_checked", checked)
    assert load(folder, grader="exact", **kept).grader.name == "exact"
    write(folder, "train", sums(31))
    assert len(load(folder, **kept).splits["train"]) == 31
    for data in (tmp_path / "cache").rglob("*.array_record*"):
        data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is damaged .*; delete it"):
        load(folder, **kept)


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
        (
            {"q": "a", "a": "b"},
            {},
            "train.jsonl:2: not a row {prompt, target} as the others, it has q, a; write all rows",
        ),
        ({"prompt": "a", "target": None}, {}, "train.jsonl:2: not a row .*, it has prompt, target: null;"),
        (["a", "b"], {}, "train.jsonl:2: not a row .*, it is a list; write one JSON object in each line"),
        ({"question": " ", "answer": "b"}, {}, "train.jsonl:2: question is empty; fill it in"),
        (
            {"question": "a", "answer": {"value": 1}},
            {},
            "train.jsonl:2: answer must be a string or a number, not {'val",
        ),
        ({"prompt": 3, "target": "b"}, {}, "train.jsonl:2: prompt must be a string"),
        ({"question": ["a"], "answer": "b"}, {}, "train.jsonl:2: question must be a string"),
        ({"question": "a", "answer": "b"}, dict(grader="number"), None),
        ({"prompt": "a", "target": " "}, {}, "train.jsonl:2: target is empty"),
        ({"prompt": " ", "target": "a"}, {}, "row 1: the prompt is empty"),
        ({"prompt": "a", "target": " b"}, dict(prompt="{prompt}"), "data.prompt and data.target: give both"),
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


def test_rows_of_unknown_fields_are_told_how_to_name_them(tmp_path):
    write(tmp_path, "train", 3 * [{"ask": "a", "say": "b"}])
    with pytest.raises(
        UserError, match=r"train.jsonl:1: not a row .*question, answer.* it has ask, say; templates name"
    ):
        load(tmp_path)


def test_an_id_is_that_of_one_row(tmp_path):
    write(tmp_path, "train", [row | {"id": i % 4} for i, row in enumerate(sums(6))])
    with pytest.raises(UserError, match=r"train.jsonl:5: the id 0 is that of .*train.jsonl:1; make ids unique"):
        load(tmp_path)


def test_marks_and_line_ends_of_other_systems_change_nothing(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in sums(12))
    write(tmp_path, "train", sums(12))
    plain = load(tmp_path).splits
    for data in ("\ufeff" + text, text.replace("\n", "\r\n"), text.replace("\n", "\n\n"), text + "\n \n"):
        (tmp_path / "train.jsonl").write_bytes(data.encode())
        assert load(tmp_path).splits == plain
    for data, kind in ((text.encode("utf-16"), "UTF-16"), (gzip.compress(text.encode()), "compressed")):
        (tmp_path / "train.jsonl").write_bytes(data)
        with pytest.raises(UserError, match=f"train.jsonl: the file is {kind}; write it as plain UTF-8"):
            load(tmp_path)


def test_prompts_that_are_in_train_and_test_are_counted(tmp_path, capsys):
    write(tmp_path, "train", sums(8))
    write(tmp_path, "test", sums(5, 6))
    load(tmp_path)
    assert "2 of 5 test rows have the prompt of a training row" in capsys.readouterr().out


def test_datasets_of_hugging_face_on_disk_are_those_rows(tmp_path):
    """As `datasets` saves them, in several files, and as repositories of the hub hold them."""
    datasets = pytest.importorskip("datasets", reason="pip install -e '.[test]' brings datasets, with trl")
    splits = {"train": sums(9), "validation": sums(4, 100), "test": sums(5, 200)}
    for split, rows in splits.items():
        write(tmp_path / "plain", {"validation": "heldout"}.get(split, split), rows)
    made = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})
    made.save_to_disk(tmp_path / "saved", num_shards=dict.fromkeys(splits, 2))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split in splits:
        for part in range(2):
            file = tmp_path / "hub" / "data" / f"{split}-0000{part}-of-00002.parquet"
            made[split].shard(2, part, contiguous=True).to_parquet(file)
    plain = load(tmp_path / "plain").splits
    assert len(plain["heldout"]) == 4
    assert load(tmp_path / "saved").splits == load(tmp_path / "hub").splits == plain
    made["train"].save_to_disk(tmp_path / "alone")
    whole = rows_of(load(tmp_path / "alone"))
    assert [e.target for e in whole] == [f" {row['answer']}" for row in splits["train"]]
    for file in (tmp_path / "alone").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"alone/data-00000-of-00001.arrow: not a whole stream of Arrow"):
        load(tmp_path / "alone")


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_stream_of_arrow_has_rows_or_is_one_mistake(changes):
    """Lengths and offsets in it are not believed: they would end the process."""
    file, table = pa.BufferOutputStream(), pa.Table.from_pylist(sums(30))
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=20)
    data = bytearray(file.getvalue())
    for place, byte in changes:
        data[int(place * len(data))] = byte
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        file.write(data)
        file.flush()
        try:
            assert len(read(file.name, None).examples) <= 30
        except UserError as error:
            assert file.name in str(error)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no train.jsonl and no train.parquet, it is empty"):
        load(tmp_path)
    (tmp_path / "rows.csv").write_text("question,answer\n")
    with pytest.raises(UserError, match=r"no train.parquet, it has rows.csv"):
        load(tmp_path)
    with pytest.raises(UserError, match="nowhere: there is no such file or folder"):
        load(tmp_path / "nowhere")
    write(tmp_path, "train", sums(1))
    with pytest.raises(UserError, match="1 row cannot be split into train and test"):
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
