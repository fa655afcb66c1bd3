"""Our own files after truncations and flipped bits: the value that was written, or named damage, never another."""

import json
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from premem_jax.analysis import trace
from premem_jax.data import added
from premem_jax.data.examples import Example
from premem_jax.data.rewriting import Endpoint
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Collected, Part
from premem_jax.evaluators.unfinished import Unfinished
from premem_jax.running import sealed
from premem_jax.running.goodput import Goodput
from premem_jax.running.programs import Clock
from premem_jax.training.checkpoints import Checkpoints
from premem_jax.training.metrics import Metrics, kept_rows

DOCUMENT = {"name": "é – \n", "rate": 1e-5, "steps": [1, 2, 3], "seconds": {"train": 0.1}, "none": None, "long": 2**70}
ROWS = [{"step": step, "loss": 1 / (1 + step)} for step in range(12)]


def damaged(data: bytes, cut: int | None, flips: list[int]) -> bytes:
    """`data` with bits flipped, then cut short; both places are taken modulo the length."""
    out = bytearray(data)
    for bit in flips:
        bit %= 8 * len(out)
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out if cut is None else out[: cut % len(out)])


def write_trace(path):
    columns = {"example": np.arange(5), "target_nll": np.linspace(0, 1, 5), "samples": np.full(5, 3)}
    trace.write_evaluation(path, 7, 1.5, {"train": columns}, {"variance": 0.5}, due=(0, 7), texts="0" * 64)
    return trace.evaluation_path(path, 7)


def read_trace(path):
    found = trace.read_trace(path.parent)
    train = found.split("train")
    values = [found.steps, found.epochs, train.example, train.nll, train.samples, found.measures["variance"]]
    return [x.tolist() for x in values], found.lost, found.texts


def write_at(path, write, value):
    write(path, value)
    return path


class Paid(Endpoint):
    """An endpoint that gives the same reply again, which costs."""

    def _asked(self, body):
        return "é – a reply"


def read_reply(path):
    return Paid("http://here/v1", "m", path.parent).reply("Another one, please.", 3)


def write_reply(folder):
    read_reply(folder / "any")
    [path] = folder.iterdir()
    return path


ADDED = [Example(i, f"{i} plus 1 ?", f" {i + 1} 🍎", str(i + 1), {"type": "é"}) for i in range(3)]


FILES = {
    "bytes": (lambda folder: write_at(folder / "b", sealed.write, bytes(range(256)) + b"\n"), sealed.read),
    "empty": (lambda folder: write_at(folder / "e", sealed.write, b""), sealed.read),
    "document": (lambda folder: write_at(folder / "d.json", sealed.write_json, DOCUMENT), sealed.read_json),
    "trace": (write_trace, read_trace),
    "added": (lambda folder: write_at(folder / "a.jsonl", added.write, ADDED), added.read),
    "reply": (write_reply, read_reply),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By kind: a path, its whole bytes, its reader and what that gives."""
    out = {}
    for kind, (write, read) in FILES.items():
        path = write(tmp_path_factory.mktemp(kind))
        out[kind] = path, path.read_bytes(), read, read(path)
    return out


@given(
    kind=st.sampled_from(sorted(FILES)),
    cut=st.none() | st.integers(0, 1 << 20),
    flips=st.lists(st.integers(0, 1 << 24), max_size=3),
)
@example(kind="document", cut=0, flips=[])
@example(kind="trace", cut=0, flips=[])
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_is_named_or_has_its_value(files, kind, cut, flips):
    path, whole, read, expected = files[kind]
    path.write_bytes(damaged(whole, cut, flips))
    try:
        found = read(path)
    except UserError as error:
        assert str(path) in str(error) or path.parent.name in str(error)
    else:
        assert found == expected


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "{", "[" * 100_000, '{"a": 1}', "9" * 6000, '{"sha256": []}'])
def test_other_json_is_damage(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(sealed.Damaged, match=r"a\.json is damaged"):
        sealed.read_json(tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    for read in (sealed.read, sealed.read_json):
        with pytest.raises(sealed.Damaged, match="is a folder"):
            read(tmp_path / "folder")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")


def test_what_is_damaged_is_set_aside_under_a_name_of_its_own(tmp_path, caplog):
    for n in range(3):
        (tmp_path / "a").write_bytes(b"%d" % n)
        assert sealed.unless_damaged(sealed.read, tmp_path / "a", tmp_path, "it is made again") is None
        assert not (tmp_path / "a").exists() and (tmp_path / "unreadable" / f"a-{n}").read_bytes() == b"%d" % n
    assert caplog.text.count("it is made again") == 3
    assert sealed.unless_damaged(sealed.read, tmp_path / "a", tmp_path, "") is None


def test_metrics_survive_damage_to_either_copy(tmp_path, caplog):
    """Rows are those that were written, or a warning says that they are not checked, or lost."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    plain, copy = tmp_path / "metrics.jsonl", tmp_path / "metrics.sealed"
    copies = {}
    sealed.write(copy, lines)
    copies[copy], copies[plain] = copy.read_bytes(), lines
    rng = np.random.default_rng(0)
    logging.disable(logging.NOTSET)
    for turn in range(300):
        for path, data in copies.items():
            path.write_bytes(data)
        hurt = [(plain,), (copy,), (plain, copy)][turn % 3]
        for path in hurt:
            cut = int(rng.integers(len(copies[path]))) if rng.integers(2) else None
            path.write_bytes(damaged(copies[path], cut, [int(rng.integers(1 << 20))]))
        caplog.clear()
        rows = kept_rows(plain, copy, 12)
        if len(hurt) == 1:
            assert rows == ROWS
        assert ("taken as they are" in caplog.text or "lost" in caplog.text) == (copy in hurt)


def test_resumed_metrics_are_written_from_the_sealed_copy(tmp_path):
    first = Metrics(tmp_path, 0)
    for row in ROWS:
        first.write(row["step"], {"loss": row["loss"]})
    first.close()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[: len(whole) // 2])
    Metrics(tmp_path, 12).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_an_unfinished_evaluation_is_continued_whole_or_not_at_all(tmp_path):
    path, sizes = tmp_path / "unfinished.npz", {"nll": 6}
    begun = Unfinished(path, 4, sizes)
    begun.of["nll"].add(Part([1, 3], {"target_nll": np.array([0.25, 0.5])}, [{"example": 3}]))
    begun.keep(now=True)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(500):
        cut = int(rng.integers(len(whole))) if rng.integers(4) == 0 else None
        path.write_bytes(damaged(whole, cut, [int(rng.integers(1 << 24))]))
        found = Unfinished(path, 4, sizes).of["nll"]
        assert vars(found).keys() == vars(Collected(6)).keys() and not found.done.any() and not found.columns
    path.write_bytes(whole)
    found = Unfinished(path, 4, sizes).of["nll"]
    assert found.done.tolist() == [False, True, False, True, False, False]
    assert found.columns["target_nll"].tolist() == [0, 0.25, 0, 0.5, 0, 0] and found.texts == [{"example": 3}]
    assert not Unfinished(path, 5, sizes).of["nll"].done.any()


@pytest.mark.parametrize("text", ["[]", "", '{"began": NaN}', '{"began": 1e999, "seconds": {}, "launches": 1}'])
def test_damaged_times_are_counted_anew(tmp_path, caplog, text):
    (tmp_path / "seconds.json").write_text(text)
    summary = Goodput(tmp_path, Clock()).summary()
    assert summary["launches"] == 1 and "counted from this launch on" in caplog.text
    Goodput(tmp_path, Clock()).keep()
    assert Goodput(tmp_path, Clock()).summary()["launches"] == 2


def test_checkpoints_that_are_a_file_are_set_aside(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("no folder")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert checkpoints.steps() == [] and "should be a folder" in caplog.text
    checkpoints.close()
    assert (tmp_path / "unreadable" / "checkpoints-0").read_text() == "no folder"
