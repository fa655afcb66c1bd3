"""Multiple-choice files: what their rows become, and what is refused by line."""

import json

import pytest

from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.tasks import choice
from premem_jax.tasks import task as tasks
from tests.shared import shared

MMLU = {"subject": "anatomy", "question": "Which? ", "choices": ["x", "y", "z"], "answer": "B"}
CSQA = {"question": {"stem": "What?", "choices": [{"label": "A", "text": "u"}, {"label": "B", "text": "v"}]}}


def read(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return choice.read(storage.path(path))


def test_rows_become_questions(tmp_path):
    one, two, three = read(tmp_path / "a.jsonl", MMLU, CSQA | {"answerKey": "A"}, MMLU | {"answer": 2})
    assert (one.prompt, one.target) == ("Which?\nA. x\nB. y\nC. z\nAnswer:", " B") and one.options == (" A", " B", " C")
    assert (two.prompt, two.target) == ("What?\nA. u\nB. v\nAnswer:", " A") and two.options == (" A", " B")
    assert three.target == " C" and [e.id for e in (one, two, three)] == [0, 1, 2]
    assert one.metadata == {"subject": "anatomy"} and choice.GRADER(" B. y", "B") and not choice.GRADER(" BB", "B")
    path = storage.path(tmp_path / "b.tsv")
    path.write_text('x\t0\t*\tThe "cat\nx\t1\t\tA cat.\n')
    bad, good = choice.read(path)
    assert bad.prompt.startswith('The "cat\nQuestion:') and (bad.answer, good.target) == ("no", " yes")


@pytest.mark.parametrize(
    "row, words",
    [
        (MMLU | {"answer": "D"}, "none of A, B, C"),
        (MMLU | {"answer": 3}, "the answer is one of A, B, C"),
        (MMLU | {"answer": True}, "the answer is one of A, B, C"),
        (MMLU | {"choices": ["x"]}, "2 to 10 choices"),
        (MMLU | {"choices": ["x", 1, "z"]}, "choices are texts"),
        (CSQA, "the answer is one of A, B"),
        ({"question": 3}, "no row of MMLU"),
        ({}, "'question' missing"),
    ],
)
def test_a_bad_row_is_named(row, words, tmp_path):
    with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{words}"):
        read(tmp_path / "a.jsonl", MMLU, row)


def test_the_public_files_are_read_whole():
    counts = {"mmlu_dev.jsonl": (285, 4), "commonsenseqa_dev.jsonl": (1221, 5), "cola_in_domain_dev.tsv": (527, 2)}
    for name, (rows, options) in counts.items():
        path = str(shared(f"data/choice/{name}"))
        task = tasks.load("choice", path=path, train=0, heldout=0, test=50, seed=0, cache="")
        assert [len(task.splits[split]) for split in ("train", "test")] == [rows - 50, 50]
        assert {len(e.options) for e in task.splits["test"]} == {options}
        assert {e.target for e in task.splits["train"]} == set(task.splits["train"][0].options)
