"""The prepared datasets against the files they come from, and everything that may be wrong with these."""

import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import grain
import pytest

from premem_jax.data import builders
from premem_jax.data.sources import sha256
from premem_jax.errors import UserError
from premem_jax.tasks import gsm8k
from premem_jax.tasks import task as tasks
from premem_jax.tasks.gsm8k import GSM8K
from premem_jax.tasks.math import MATH, last_box
from tests.shared import shared

DATASETS = {"gsm8k": GSM8K, "math": MATH}
COUNTS = {"gsm8k": {"train": 7473, "test": 1319}, "math": {"train": 7500, "test": 5000}}
GSM8K_ROW = {"question": "How many “½” – 3 or 4?\u2028Why?", "answer": "It is 2+1=<<2+1=3>>3.\n#### 3"}
MATH_ROW = {
    "problem": "Find $π$.\u0085",
    "solution": r"So $\boxed{\frac{1}{2}}$.",
    "level": "Level 2",
    "type": "Algebra",
}
ROWS = {"gsm8k": GSM8K_ROW, "math": MATH_ROW}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody answers


def read_jsonl(path):
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


def write_jsonl(folder, rows, ascii=False):
    folder.mkdir(exist_ok=True)
    for split, items in rows.items():
        text = "".join(json.dumps(item, ensure_ascii=ascii) + "\n" for item in items)
        (folder / f"{split}.jsonl").write_bytes(text.encode())
    return folder


def write_tree(folder, rows):
    """The layout of MATH.tar, from rows that know their file."""
    for split, items in rows.items():
        for number, item in enumerate(items):
            path = folder / item.get("id", f"{split}/algebra/{number}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({name: item[name] for name in MATH.fields}, indent=1))
    return folder


def small(folder, name, train=3, test=2):
    field = "question" if name == "gsm8k" else "problem"
    numbered = lambda split, n: [ROWS[name] | {field: f"{split} {i}: {ROWS[name][field]}"} for i in range(n)]
    return write_jsonl(folder, {"train": numbered("train", train), "test": numbered("test", test)})


def texts(data):
    """What the dataset says of every row, ids last."""
    return {s: [{k: v if k == "id" else v.decode() for k, v in row.items()} for row in data[s]] for s in data}


def metadata(data):
    return data["train"].dataset_info.metadata


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def real(cache):
    """`prepared` of the real files of each dataset, as far as they are here."""
    return lambda name: builders.prepared(DATASETS[name], str(shared(f"data/{name}")), cache)


@pytest.fixture
def serve(request):
    """Serves a folder over HTTP until the test ends, and returns its URL."""

    def start(folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request.addfinalizer(lambda: (server.shutdown(), server.server_close()))
        return f"http://127.0.0.1:{server.server_address[1]}/"

    return start


# ---- The real files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_every_row_of_the_real_files_comes_back_unchanged_under_its_row_number(name, real):
    data = real(name)
    assert {split: len(rows) for split, rows in data.items()} == COUNTS[name]
    back = texts(data)
    for split, rows in back.items():
        file = read_jsonl(shared(f"data/{name}/{split}.jsonl"))
        assert [row["id"] for row in rows] == list(range(len(file)))
        if name == "gsm8k":
            assert [(row["problem"], row["solution"]) for row in rows] == [(r["question"], r["answer"]) for r in file]
        else:
            kept = ("problem", "solution", "answer", "level", "type")
            assert [[row[k] for k in kept] for row in rows] == [[r[k] for k in kept] for r in file]
    assert not all((row["problem"] + row["solution"]).isascii() for row in back["train"])
    assert metadata(data)["official"]


def test_the_checksums_at_hand_are_those_that_a_download_is_held_against():
    for name, checksum in GSM8K.files.items():
        assert sha256(shared(f"data/gsm8k/{name}").read_bytes()) == checksum


def test_math_as_a_tree_of_problems_is_the_same_dataset_with_the_same_ids(real, tmp_path):
    rows = {split: read_jsonl(shared(f"data/math/{split}.jsonl")) for split in ("train", "test")}
    tree = builders.prepared(MATH, str(write_tree(tmp_path / "MATH", rows)), tmp_path / "cache")
    for split, items in texts(tree).items():
        assert [row["problem"] for row in items] == [row["problem"] for row in rows[split]]
    one, other = metadata(tree), metadata(real("math"))
    assert one["rows_sha256"] == other["rows_sha256"] and one["files_sha256"] != other["files_sha256"]


def test_the_oddities_of_the_real_files_are_counted(real):
    """The counts are those of the notes that came with the files, found by other people's code."""
    assert metadata(real("gsm8k"))["defects"]["without_annotations"]["train"] == 95
    assert metadata(real("math"))["defects"] == {
        "empty_box": {"train": 2, "test": 0},
        "brace_free_box": {"train": 2, "test": 0},
        "several_boxes": {"train": 114, "test": 90},
        "unknown_level": {"train": 2, "test": 0},
        "in_both_splits": {"train": 0, "test": 1},
    }
    several = [sum(r["n_boxed"] > 1 for r in read_jsonl(shared(f"data/math/{s}.jsonl"))) for s in ("train", "test")]
    assert several == [114, 90]
    line = builders.summary("math", real("math"))
    assert "7500 train and 5000 test rows, the official ones" in line and "several boxes 114 + 90" in line


def test_grain_reads_any_row_by_its_number(real):
    file = read_jsonl(shared("data/gsm8k/train.jsonl"))
    dataset = grain.MapDataset.source(real("gsm8k")["train"])
    for row in (0, 7472, 1234, 7, 1234):
        assert dataset[row]["solution"].decode() == file[row]["answer"] and dataset[row]["id"] == row
    shuffled = dataset.seed(3).shuffle().map(lambda row: int(row["id"]))
    assert sorted(shuffled[i] for i in range(0, 7473)) == list(range(7473))


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_the_task_is_the_prepared_dataset(name, cache, capsys):
    path, sizes = str(shared(f"data/{name}")), dict(train=500, heldout=100, test=50, seed=1)
    task = tasks.load(name, path=path, cache=str(cache), **sizes)
    assert f"{name}: {COUNTS[name]['train']} train" in capsys.readouterr().out
    assert {split: len(examples) for split, examples in task.splits.items()} == dict(train=500, heldout=100, test=50)
    assert not {e.id for e in task.splits["train"]} & {e.id for e in task.splits["heldout"]}
    for split, file in dict(train="train", heldout="train", test="test").items():
        rows = read_jsonl(shared(f"data/{name}/{file}.jsonl"))
        for example in task.splits[split]:
            row = rows[example.id]
            problem, solution = (
                (row["question"], row["answer"]) if name == "gsm8k" else (row["problem"], row["solution"])
            )
            assert (example.prompt, example.target) == (f"{problem}\nAnswer:", f" {solution}")
            if name == "math":
                assert (example.answer, example.metadata) == (row["answer"], {k: row[k] for k in ("level", "type")})


def test_the_task_has_the_examples_that_the_reader_of_the_files_has(tmp_path):
    folder = small(tmp_path / "files", "gsm8k")
    task = tasks.load("gsm8k", path=str(folder), train=0, heldout=0, test=0, seed=0, cache=str(tmp_path / "cache"))
    assert task.splits == {split: gsm8k.read(folder, split) for split in ("train", "test")}
    assert task.splits["train"][2].answer == "3"


# ---- Prepared once, and never stale or half ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_a_second_run_reads_what_the_first_one_wrote(name, tmp_path, monkeypatch):
    folder = small(tmp_path / "files", name)
    first = texts(builders.prepared(DATASETS[name], str(folder), tmp_path / "cache"))
    for step in ("load", "_write"):
        monkeypatch.setattr(builders, step, lambda *args: pytest.fail("prepared again"))
    assert texts(builders.prepared(DATASETS[name], str(folder), tmp_path / "cache")) == first
    moved = folder.rename(tmp_path / "elsewhere")
    assert texts(builders.prepared(DATASETS[name], str(moved), tmp_path / "cache")) == first


def test_a_file_that_changed_is_read_again(tmp_path):
    folder, cache = small(tmp_path / "files", "gsm8k"), tmp_path / "cache"
    path = folder / "test.jsonl"
    before, first = path.read_bytes(), texts(builders.prepared(GSM8K, str(folder), cache))
    path.write_bytes(before.replace(b"test 1:", b"test 7:"))
    assert texts(builders.prepared(GSM8K, str(folder), cache))["test"][1]["problem"].startswith("test 7:")
    path.write_bytes(before)
    assert texts(builders.prepared(GSM8K, str(folder), cache)) == first


def test_one_problem_of_a_tree_that_changed_is_read_again(tmp_path):
    rows = {"train": [MATH_ROW, MATH_ROW], "test": [MATH_ROW]}
    folder, cache = write_tree(tmp_path / "MATH", rows), tmp_path / "cache"
    builders.prepared(MATH, str(folder), cache)
    write_tree(folder, {"train": [MATH_ROW, MATH_ROW | {"level": "Level 5"}]})
    data = builders.prepared(MATH, str(folder), cache)
    assert [row["level"] for row in texts(data)["train"]] == ["Level 2", "Level 5"]


def run(script, *args):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, env=env)


def test_a_killed_preparation_leaves_nothing_that_looks_finished(tmp_path):
    folder, cache = small(tmp_path / "files", "gsm8k", train=100), tmp_path / "cache"
    script = """if True:
        import os, signal, sys
        from premem_jax.data import builders
        from premem_jax.tasks.gsm8k import GSM8K
        generate = builders.Problems._generate_examples
        def killed(self, rows):
            yield from list(generate(self, rows))[:50]
            os.kill(os.getpid(), signal.SIGKILL)
        builders.Problems._generate_examples = killed
        builders.prepared(GSM8K, *sys.argv[1:])
    """
    assert run(script, folder, cache).returncode == -signal.SIGKILL
    assert list(cache.rglob("*incomplete*")) and not list(cache.rglob("dataset_info.json"))
    data = builders.prepared(GSM8K, str(folder), cache)
    assert len(texts(data)["train"]) == 100


def test_of_two_that_prepare_the_same_the_slower_one_takes_what_is_there(tmp_path, monkeypatch):
    folder, cache = str(small(tmp_path / "files", "gsm8k")), tmp_path / "cache"
    generate = builders.Problems._generate_examples

    def overtaken(self, rows):
        monkeypatch.setattr(builders.Problems, "_generate_examples", generate)
        builders.prepared(GSM8K, folder, cache)
        yield from generate(self, rows)

    monkeypatch.setattr(builders.Problems, "_generate_examples", overtaken)
    assert len(builders.prepared(GSM8K, folder, cache)["train"]) == 3
    assert not list(cache.rglob("*incomplete*"))


def test_a_damaged_dataset_says_what_to_delete(tmp_path):
    folder, cache = small(tmp_path / "files", "gsm8k"), tmp_path / "cache"
    data = builders.prepared(GSM8K, str(folder), cache)
    next(cache.rglob("gsm8k-train*")).write_bytes(b"")
    with pytest.raises(UserError, match="damaged") as error:
        builders.examples(builders.prepared(GSM8K, str(folder), cache)["train"])
    assert str(data["train"].dataset_info.data_dir) in str(error.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*cache.*config.cache"):
        builders.prepared(GSM8K, str(small(tmp_path / "files", "gsm8k")), tmp_path / "cache")


def test_tensorflow_is_never_imported_nor_tfds_by_those_who_need_it_not(tmp_path):
    """Not even where TensorFlow is installed, which a stand-in is here."""
    (tmp_path / "tensorflow.py").write_text("")
    script = """if True:
        import importlib.util, sys
        sys.path.insert(0, sys.argv[3])
        assert importlib.util.find_spec("tensorflow")
        from premem_jax.tasks import task as tasks
        tasks.load("arithmetic", path="", train=2, heldout=0, test=2, seed=0, cache=sys.argv[2])
        assert "tensorflow_datasets" not in sys.modules
        for _ in range(2):  # prepared, then read
            task = tasks.load("gsm8k", path=sys.argv[1], train=0, heldout=0, test=0, seed=0, cache=sys.argv[2])
        assert len(task.splits["train"]) == 3 and "tensorflow_datasets" in sys.modules
        assert "tensorflow" not in sys.modules
        print("done")
    """
    result = run(script, small(tmp_path / "files", "gsm8k"), tmp_path / "cache", tmp_path)
    assert result.stdout.splitlines()[-1:] == ["done"], result.stderr


# ---- What may be wrong with the files --------------------------------------------------------------------------------

LATIN1 = json.dumps({"question": "é", "answer": "#### 3"}, ensure_ascii=False).encode("latin-1")
MALFORMED = {
    "bad JSON": ("gsm8k", b"{", "not a row {question, answer}"),
    "empty line": ("gsm8k", b"", "not a row {question, answer}"),
    "no object": ("gsm8k", b"[1, 2]", "not a row {question, answer}"),
    "no field": ("gsm8k", b'{"question": "?"}', "not a row {question, answer}"),
    "no string": ("gsm8k", b'{"question": "?", "answer": 3}', "not a row {question, answer}"),
    "bad UTF-8": ("gsm8k", LATIN1, "not a row {question, answer}"),
    "half a pair": ("gsm8k", b'{"question": "\\ud800", "answer": "#### 3"}', "not a row {question, answer}"),
    "no answer": ("gsm8k", b'{"question": "?", "answer": "3"}', "has no `#### N` line"),
    "other dataset": ("math", json.dumps(GSM8K_ROW).encode(), "not a row {problem, solution, level, type}"),
    "no box": ("math", json.dumps(MATH_ROW | {"solution": "$2$"}).encode(), "has no box"),
    "open box": ("math", json.dumps(MATH_ROW | {"solution": r"\boxed{2"}).encode(), "never closed"),
}


@pytest.mark.parametrize(("name", "line", "complaint"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_named_by_file_and_line_before_anything_is_written(name, line, complaint, tmp_path):
    folder, cache = small(tmp_path / "files", name, test=3), tmp_path / "cache"
    path = folder / "test.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(UserError) as error:
        builders.prepared(DATASETS[name], str(folder), cache)
    assert str(error.value).startswith(f"{path}:2: ") and complaint in str(error.value)
    assert "\n" not in str(error.value) and not cache.exists()


def test_a_malformed_problem_of_a_tree_is_named_by_file(tmp_path):
    folder = write_tree(tmp_path / "MATH", {"train": [MATH_ROW], "test": [MATH_ROW]})
    (folder / "test/algebra/5.json").write_text("{}")
    with pytest.raises(UserError, match=r"MATH/test/algebra/5\.json: not a row"):
        builders.prepared(MATH, str(folder), tmp_path / "cache")


@pytest.mark.parametrize("name", ["gsm8k", "math"])
@pytest.mark.parametrize("missing", ["folder", "split", "rows"])
def test_files_that_are_not_there_are_told_with_how_to_get_them(name, missing, tmp_path):
    folder = small(tmp_path / "files", name)
    if missing == "folder":
        shutil.rmtree(folder)
    elif missing == "split":
        (folder / "test.jsonl").unlink()
    else:
        (folder / "test.jsonl").write_text("")
    with pytest.raises(UserError, match=r"test.*--config.data.path" if missing != "folder" else "--config.data.path"):
        builders.prepared(DATASETS[name], str(folder), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


BOXES = {
    r"$\boxed{3}$": "3",
    r"\boxed{1} then \boxed{\text{no } {a}}": r"\text{no } {a}",
    r"\fbox{7}": "7",
    r"\fbox{7} after \boxed{8}, \fbox{9}": "8",
    r"\boxed{}": "",
    r"so $\boxed 2$.": "2",
    "\\boxed 12\nand more": "12",
    r"\boxed {5}": "5",
    r"\boxed{\{1,2\}}": r"\{1,2\}",
}


@pytest.mark.parametrize(("solution", "answer"), BOXES.items())
def test_the_last_box_is_the_answer(solution, answer):
    assert last_box(solution) == answer


# ---- The network -----------------------------------------------------------------------------------------------------


def test_a_mirror_of_the_official_files_gives_the_dataset_of_the_folder(real, serve, tmp_path, monkeypatch):
    data = builders.prepared(GSM8K, serve(shared("data/gsm8k")), tmp_path)
    assert metadata(data) == metadata(real("gsm8k"))
    monkeypatch.setattr(builders, "load", lambda *args: pytest.fail("prepared again"))
    for source in (
        "",
        NOWHERE,
        str(shared("data/gsm8k")),
    ):  # all known to be the same files, with no look at the network
        assert len(builders.prepared(GSM8K, source, tmp_path)["test"]) == 1319


def test_a_download_that_is_not_the_official_file_is_refused(serve, tmp_path):
    url = serve(small(tmp_path / "files", "gsm8k"))
    with pytest.raises(
        UserError, match=f"{url}train.jsonl has SHA-256 .* the official file {GSM8K.files['train.jsonl']}"
    ):
        builders.prepared(GSM8K, url, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["gsm8k", "math"])
@pytest.mark.parametrize("way", ["official", "mirror", "not found"])
def test_without_a_network_the_message_says_how_to_get_the_files(name, way, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.find(name), name.upper(), DATASETS[name]._replace(url=NOWHERE))
    (tmp_path / "empty").mkdir()
    source = {"official": "", "mirror": NOWHERE, "not found": serve(tmp_path / "empty")}[way]
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1.*--config.data.path"):
        tasks.load(name, path=source, train=0, heldout=0, test=0, seed=0, cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_the_original_archive_of_math_is_read_in_the_official_order(serve, tmp_path, monkeypatch):
    names = ["train/prealgebra/1.json", "train/algebra/2.json", "train/algebra/10.json", "test/geometry/3.json"]
    (tmp_path / "served").mkdir()
    with tarfile.open(tmp_path / "served/MATH.tar", "w") as tar:
        for name in [*names, "train/algebra/._2.json"]:
            hidden = name.rpartition("/")[2].startswith(".")
            data = b"\0junk" if hidden else json.dumps(MATH_ROW | {"problem": name}).encode()
            info = tarfile.TarInfo(f"MATH/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    url = serve(tmp_path / "served")
    with pytest.raises(UserError, match="has SHA-256"):
        builders.prepared(MATH, url, tmp_path / "cache")
    checksum = sha256((tmp_path / "served/MATH.tar").read_bytes())
    dataset = MATH._replace(files={"MATH.tar": checksum}, url=url)
    data = texts(builders.prepared(dataset, None, tmp_path / "cache"))
    expected = ["train/algebra/10.json", "train/algebra/2.json", "train/prealgebra/1.json"]
    assert [row["problem"] for row in data["train"]] == expected
    builder = builders.builder_of(dataset)(data_dir=tmp_path / "plain")  # as a TFDS user would
    builder.download_and_prepare()
    assert texts(builder.as_data_source()) == data and str(builder.version) == "1.0.0"
