"""The experiment `audit_traces`: tables, page and the subset it selects, from folders, published runs and tables."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import audit as config_file
from premem_jax.analysis.audit_columns import COLUMNS
from premem_jax.analysis.trace import write_evaluation
from premem_jax.errors import UserError
from premem_jax.experiments import audit_traces
from tests.analysis.traces import FOLDER, GIVEN, synthetic_splits, write_table
from tests.shared import shared


def audited(traces, folder, arg=None, changes=()):
    config = config_file.get_config(arg)
    config.update_from_flattened_dict({"traces": str(traces)} | GIVEN | dict(changes))
    audit_traces.run(config, folder)
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same examples, with their texts, of which some look like HTML."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 1), ("b", 2)):
        for m in (1, 2, 3):
            splits = synthetic_splits(seed, m, examples=60)
            splits["train"]["answers"] = 2 * np.random.default_rng(m).integers(1, 9, (60, 4))
            write_evaluation(folder / name / "trace", m, m, splits)
        config = {"data": {"task": "made up"}, "model": {"preset": "tiny"}}
        (folder / name / "config.json").write_text(json.dumps(config))
        rows = [{"split": "train", "example": i, "prompt": f"<b>{i}</b> é", "reference": f"r {i}"} for i in range(60)]
        rows.append({"split": "test", "example": 0, "prompt": "t", "reference": "t"})
        (folder / name / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_tables_page_and_subset(runs, tmp_path):
    summary = audited(runs, tmp_path / "out", "select=hardest,share=0.4")
    table = pq.read_table(tmp_path / "out" / "audit.parquet").to_pydict()
    assert table.keys() == {"run", "example", *COLUMNS} and len(table["run"]) == 120
    assert table["example"] == [*range(60)] * 2 and set(table["run"]) == {"a", "b"}
    suspects = pq.read_table(tmp_path / "out" / "suspects.parquet").to_pydict()
    assert suspects["suspicion"] == sorted(suspects["suspicion"], reverse=True)
    assert summary["suspects"] == suspects["example"][:100] and summary["selected"] == 24
    lines = [json.loads(line) for line in (tmp_path / "out" / "selected.jsonl").read_text().splitlines()]
    chosen = [int(line["target"].removeprefix(" r ")) for line in lines]
    assert all(line["prompt"] == f"<b>{i}</b> é" for i, line in zip(chosen, lines, strict=True))
    means = np.nanmean(np.reshape(table["unmemorized_accuracy"], (2, 60)), axis=0)
    assert means[chosen].max() <= np.delete(means, chosen).min() and len(set(chosen)) == 24
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in html and "&lt;b&gt;" in html and "Suspect labels" in html


def test_any_column_selects_from_either_end(runs, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"q {i}"}) + "\n" for i in range(60)))
    first = {}
    for name in ("first_nll", "-first_nll"):
        audited(runs, tmp_path / name, f"select={name},share=0.25", {"rows": str(rows)})
        lines = (tmp_path / name / "selected.jsonl").read_text().splitlines()
        first[name] = [int(json.loads(line)["question"].split()[1]) for line in lines]
    table = pq.read_table(tmp_path / "first_nll" / "audit.parquet").to_pydict()
    nll = np.mean(np.reshape(table["first_nll"], (2, 60)), axis=0)
    assert set(first["first_nll"]) == set(np.argsort(nll)[:15]) and set(first["-first_nll"]) == set(
        np.argsort(nll)[45:]
    )


def test_published_runs_have_memorization_scores(tmp_path):
    summary = audited(shared(FOLDER), tmp_path / "out", None, {"threshold.rule": "published"})
    assert len(summary["runs"]) == 13 and summary["threshold_looks_at_test"]
    table = pq.read_table(tmp_path / "out" / "memorization.parquet").to_pydict()
    assert len(table["example"]) == 6552 and 0.15 < np.mean(table["memorization"]) < 0.25
    assert not (tmp_path / "out" / "selected.jsonl").exists()


@pytest.mark.parametrize(
    "arg, rows, words",
    [
        ("select=hard", "60", ["'hard'", "did you mean 'hardest'"]),
        ("select=hardest", None, ["no texts", "rows=FILE"]),
        ("select=hardest,share=1.0", "5", ["no row 5"]),
        ("select=hardest", "missing", ["missing", "cannot be read"]),
        ("select=hardest", "lists", ["lists:1", "no JSON object"]),
    ],
)
def test_a_mistake_is_one_message(tmp_path, arg, rows, words):
    traces = tmp_path / "traces" / "t.npz"
    traces.parent.mkdir()
    write_table(traces)
    changes = {}
    if rows:
        (tmp_path / "60").write_text("{}\n" * 60)
        (tmp_path / "5").write_text("{}\n" * 5)
        (tmp_path / "lists").write_text("[1]\n" * 60)
        changes["rows"] = str(tmp_path / rows)
    with pytest.raises(UserError) as error:
        audited(traces, tmp_path / "out", arg, changes)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert not (tmp_path / "out").exists()
