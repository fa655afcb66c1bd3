"""GSM8K: the official files read whole, rows that are not GSM8K refused by line, and subsets that never meet."""

import json
import re

import pytest

from premem_jax.errors import UserError
from premem_jax.tasks import gsm8k
from premem_jax.tasks import task as tasks
from tests.shared import shared

GOOD = {"question": "How many legs have 2 dogs?", "answer": "2 * 4 = <<2*4=8>>8\n#### 8"}


def write(folder, *rows, split="train"):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_official_files(split, count):
    path = shared(f"data/gsm8k/{split}.jsonl")
    examples = gsm8k.read(path.parent, split)
    assert len(examples) == count
    for i, (example, line) in enumerate(zip(examples, path.open(encoding="utf-8"), strict=True)):
        row = json.loads(line)
        assert example.id == i
        assert example.prompt == row["question"] + "\nAnswer:" and example.target == " " + row["answer"]
        assert example.answer == re.search(r"\n#### (-?[\d,]+)\Z", row["answer"])[1]


@pytest.mark.parametrize("break_", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r"])
def test_only_a_newline_ends_a_row(tmp_path, break_):
    """JSON allows other line breaks of Unicode inside a string, bare or escaped."""
    rows = [GOOD | {"question": f"One{break_}two?"}, GOOD]
    bare = break_ not in "\x0b\x1c\r"  # control characters must be escaped, and `json.dumps` does so
    examples = gsm8k.read(write(tmp_path, *rows), "train")
    assert [e.prompt for e in examples] == [f"One{break_}two?\nAnswer:", GOOD["question"] + "\nAnswer:"]
    assert (break_ in (tmp_path / "train.jsonl").read_text(encoding="utf-8")) == bare


BROKEN = {
    "not JSON": '{"question": "a", "answer": ',
    "an empty line": "",
    "a list": "[1, 2]",
    "a string": '"question answer"',
    "null": "null",
    "no answer": {"question": "How many?"},
    "no question": {"answer": "#### 1"},
    "answer is a number": {"question": "How many?", "answer": 8},
    "question is null": {"question": None, "answer": "#### 8"},
    "no marker": {"question": "How many?", "answer": "The answer is 8"},
    "no number": {"question": "How many?", "answer": "2 dogs\n#### eight"},
    "number a line late": {"question": "How many?", "answer": "2 dogs ####\n8"},
}


@pytest.mark.parametrize("row", BROKEN.values(), ids=BROKEN)
def test_a_malformed_row_is_named_by_its_line(tmp_path, row):
    path = write(tmp_path, GOOD, GOOD, row, GOOD) / "train.jsonl"
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:3: "):
        gsm8k.read(tmp_path, "train")


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {re.escape(str(tmp_path / 'train.jsonl'))}.*--config.data.path"):
        gsm8k.read(tmp_path, "train")
    (tmp_path / "train.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}\n')
    with pytest.raises(UserError, match=r"train\.jsonl:1: not a row"):
        gsm8k.read(tmp_path, "train")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The splits of the official files, prepared once."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def load(seed=0, train=0, heldout=0, test=0):
        path = str(shared("data/gsm8k/train.jsonl").parent)
        sizes = dict(train=train, heldout=heldout, test=test)
        return tasks.load("gsm8k", path=path, seed=seed, cache=cache, **sizes).splits

    return load


def test_zero_takes_all(load):
    splits = load()
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 7473, "test": 1319}
    assert [e.id for e in splits["train"]] == list(range(7473))


def test_subsets(load):
    """Sizes as asked; train and heldout never meet; the same seed gives the same; ids are rows of the official file."""
    official = {split: gsm8k.read(shared("data/gsm8k/train.jsonl").parent, split) for split in ("train", "test")}
    splits = load(seed=3, train=500, heldout=200, test=100)
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 500, "heldout": 200, "test": 100}
    ids = {name: [e.id for e in examples] for name, examples in splits.items()}
    assert not set(ids["train"]) & set(ids["heldout"])
    for name, examples in splits.items():
        assert len(set(ids[name])) == len(examples)
        assert examples == [official["test" if name == "test" else "train"][i] for i in ids[name]]
    assert load(seed=3, train=500, heldout=200, test=100) == splits
    other = load(seed=4, train=500, heldout=200, test=100)
    assert all([e.id for e in other[name]] != ids[name] for name in ids)
    grown = load(seed=3, train=600, heldout=200, test=150)
    assert set(ids["train"]) < {e.id for e in grown["train"]} and set(ids["test"]) < {e.id for e in grown["test"]}


@pytest.mark.parametrize("sizes", [dict(train=7000, heldout=474), dict(heldout=1)])
def test_asking_for_more_than_there_is(load, sizes):
    with pytest.raises(UserError, match=r"heldout examples asked, .* has 7473"):
        load(**sizes)


def test_unknown_tasks_and_negative_sizes():
    options = dict(path="", train=1, heldout=1, test=1, seed=0, cache="")
    with pytest.raises(UserError, match=r"data\.task='gsm9k': there is arithmetic, .*gsm8k"):
        tasks.load("gsm9k", **options)
    for split in ("train", "heldout", "test"):
        with pytest.raises(UserError, match=f"data.{split}=-1"):
            tasks.load("gsm8k", **options | {split: -1})


def test_arithmetic_subsets():
    options = dict(path="", train=30, heldout=0, test=10, seed=0, cache="")
    splits = tasks.load("arithmetic", **options).splits
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 30, "test": 10}
    assert tasks.load("arithmetic", **options | {"train": 40}).splits["train"][:30] == splits["train"]
    assert tasks.load("arithmetic", **options | {"seed": 1}).splits["train"] != splits["train"]
    for split in ("train", "test"):
        with pytest.raises(UserError, match=f"data.{split}=0"):
            tasks.load("arithmetic", **options | {split: 0})
