"""Pairs from a file: plain rows, whole dialogues, further responses, and lines that are none."""

import json

import pytest

from premem_jax.errors import UserError
from premem_jax.tasks import preferences
from premem_jax.tasks import task as tasks
from tests.shared import shared

HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: What?\n\nAssistant:"


def written(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_and_dialogues_are_read(tmp_path):
    rows = [
        {"prompt": "p", "chosen": " a", "rejected": " b", "rewritten": " c", "score": 3},
        {"chosen": HH + " Well.", "rejected": HH + " Why.\n\nHuman: So\n\nAssistant: No"},
        {"prompt": "", "chosen": "x", "rejected": "y"},
        {"chosen": HH + " same", "rejected": HH + " same"},
    ]
    plain, dialogue, apart, same = preferences.read(written(tmp_path, rows))
    assert (plain.prompt, plain.target, plain.rejected) == ("p", " a", " b")
    assert plain.metadata == {"rewritten": " c"}
    assert (dialogue.prompt, dialogue.target) == (HH, " Well.")
    assert dialogue.rejected == " Why.\n\nHuman: So\n\nAssistant: No"
    assert (apart.prompt, same.prompt, same.target) == ("", HH, " same")


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": "p", "chosen": " a"}, "rejected"),
        ({"prompt": "p", "chosen": [{"role": "user"}], "rejected": " b"}, "pairs.jsonl:1: chosen must be a text"),
        ({"prompt": None, "chosen": " a", "rejected": " b"}, "prompt must be a text"),
        ({"question": "p", "chosen": " a", "rejected": " b"}, "no prompt, and the responses do not begin with one"),
        ("[1]", "pairs.jsonl:1"),
        ("{", "pairs.jsonl:1"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        preferences.read(written(tmp_path, [row]))


def test_splits_are_disjoint_and_of_the_sizes_asked(tmp_path):
    path = written(tmp_path, [{"prompt": f"p{i}", "chosen": " a", "rejected": " b"} for i in range(20)])
    load = lambda **sizes: tasks.load("preferences", path=str(path), seed=1, cache="", **sizes).splits
    splits = load(train=0, heldout=3, test=5)
    assert {name: len(mine) for name, mine in splits.items()} == {"train": 12, "heldout": 3, "test": 5}
    assert sorted(e.id for mine in splits.values() for e in mine) == list(range(20))
    assert set(load(train=4, heldout=0, test=0)) == {"train"}
    for sizes in (dict(train=18, heldout=3, test=0), dict(train=0, heldout=15, test=5)):
        with pytest.raises(UserError, match=r"20|has 20"):
            load(**sizes)


def test_the_probe_file_of_the_paper_is_read():
    examples = preferences.read(shared("data/preferences/probe_train.jsonl"))
    assert len(examples) > 100 and all(e.prompt.endswith("Assistant:") for e in examples)
    assert {"chosen_gptsemantic", "irr_hum", "random_nonhum"} <= examples[0].metadata.keys()
