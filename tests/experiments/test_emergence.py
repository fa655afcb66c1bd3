"""The experiment `emergence`: a table of anybody's, from the file to the page; the seal of the forecast; bad tables."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import emergence as config_file
from premem_jax.analysis.emergence_law import Law, planted
from premem_jax.analysis.emergence_table import Rows, checksum, read
from premem_jax.errors import UserError
from premem_jax.experiments import emergence
from premem_jax.running import sealed, storage
from tests.report.browser import launched, misfits, opened

LOSSES = np.array([2.75, 2.6, 2.48, 2.31, 2.2, 2.11, 2.03, 1.96, 1.89])
FURTHER = np.array([1.83, 1.77, 1.71, 1.66, 1.6])
AMOUNTS = (1500, 6000, 25_000, 100_000)
LAW = Law("log_power_law", 5, 100_000, 1.814, 2.25, 2.0, slope=0.6, floor=0.25, fewshot_floor=0.25)


def table(rows: Rows) -> list[dict]:
    """Rows as others would write them: names, numbers, and what was not measured left out."""
    columns = {name: column.tolist() for name, column in rows._asdict().items()}
    lines = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    return [{key: value for key, value in line.items() if value == value} for line in lines]


def write(path, lines: list[dict]):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    return path


def weak(seed=0) -> Rows:
    rows = planted(LAW, LOSSES, AMOUNTS, noise=0.004, seed=seed)
    return rows._replace(flops=1e20 * np.exp(4 * (2.75 - rows.loss)))


def strong(path):
    few = planted(LAW, FURTHER, (), noise=0.004, seed=7)
    return write(path, table(few._replace(flops=1e20 * np.exp(4 * (2.75 - few.loss)))))


def asked(path, folder, **changes):
    config = config_file.get_config()
    config.update({"table": str(path), "draws": 4} | changes)
    return emergence.run(config, storage.path(folder))


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_holds_the_same_rows(kind, tmp_path):
    rows, notes = read(storage.path(write(tmp_path / f"table{kind}", table(weak()))))
    assert checksum(rows) == checksum(weak()) and notes == []


def test_a_forecast_is_written_before_the_truth_is_opened_and_never_after(tmp_path):
    path, folder = write(tmp_path / "table.csv", table(weak())), tmp_path / "run"
    asked(path, folder)
    before = (folder / "forecast.json").read_bytes()
    found = sealed.read_json(folder / "forecast.json")
    assert found["rows_sha256"] == checksum(weak()) and found["made_by"] and found["refused"] is None
    assert abs(found["elbow"] - 1.814) < 0.1
    figures = {file.name for file in (folder / "figures").iterdir()}
    kinds = ("accuracy", "law", "posterior", "forecast")
    assert figures == {f"{kind}{width}.png" for kind in kinds for width in ("", "_narrow")}
    assert "is to appear at a pretraining loss of" in (folder / "report.html").read_text()

    second = tmp_path / "with_truth"
    summary = asked(path, second, truth=str(strong(tmp_path / "strong.jsonl")))
    assert sealed.read_json(second / "forecast.json") == found  # the truth took no part in it
    assert abs(summary["verdict"]["elbow"] - 1.814) < 0.03
    assert summary["verdict"]["scores"].keys() >= {"emergence_law", "last_value", "two_step", "smallest_amount"}
    assert "inside the interval" in (text := (second / "report.html").read_text()) or "outside the interval" in text
    assert asked(path, second, truth=str(tmp_path / "strong.jsonl"))["verdict"] == summary["verdict"]
    assert (folder / "forecast.json").read_bytes() == before

    for harmed in (folder, second):
        (harmed / "forecast.json").write_bytes(before.replace(b"elbow", b"el_ow", 1))
    asked_again = storage.path(folder)
    assert emergence._read(asked_again / "forecast.json", asked_again, opened=False) is None  # and it is made again
    (folder / "forecast.json").write_bytes(before)
    with pytest.raises(UserError, match=r"is damaged.*put a copy of it back"):
        asked(path, second, truth=str(tmp_path / "strong.jsonl"))
    (second / "forecast.json").unlink()
    with pytest.raises(UserError, match="the truth has been opened"):
        asked(path, second, truth=str(tmp_path / "strong.jsonl"))
    assert not (second / "forecast.json").exists()
    write(path, table(weak(seed=1)))
    with pytest.raises(UserError, match="made from other rows"):
        asked(path, folder)


def test_the_page_is_readable_at_all_widths(tmp_path):
    path = write(tmp_path / "table.csv", table(weak()))
    asked(path, tmp_path / "run", truth=str(strong(tmp_path / "strong.jsonl")))
    with launched() as browser, opened(browser, tmp_path / "run" / "report.html") as page:
        assert misfits(page) == [] and page.locator("img").count() == 4


def test_a_refusal_ends_as_a_result(tmp_path):
    """A table from which nothing can be predicted still gives a page, with the reason, and baselines."""
    rows = weak()
    path = write(tmp_path / "table.jsonl", table(rows.where(rows.amount <= 1500)))
    summary = asked(path, tmp_path / "run", truth=str(strong(tmp_path / "strong.csv")))
    assert summary["elbow"] is None and "1 amount of" in summary["refused"]
    assert summary["verdict"]["scores"]["emergence_law"]["elbow"] is None
    assert "no forecast: 1 amount of" in (tmp_path / "run" / "report.html").read_text()


FIRST = {"loss": 2.5, "amount": 100, "accuracy": 0.3, "subset": "a", "model": "m"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"accuracy": 31.5}, ["row 2", "accuracy=31.5", "from -1 to 1"]),
        ({"accuracy": None}, ["row 2", "accuracy"]),
        ({"accuracy": True}, ["row 2", "accuracy=True"]),
        ({"loss": 0}, ["row 2", "loss=0"]),
        ({"loss": "much"}, ["row 2", "loss='much'"]),
        ({"amount": 2.5}, ["row 2", "amount=2.5", "whole"]),
        ({"amount": -1}, ["row 2", "amount=-1"]),
        ({"items": 0}, ["items"]),
        ({"flops": -1.0}, ["row 2", "flops"]),
        ({"gold_logprob": 0.2}, ["row 2", "gold_logprob"]),
        ({"pass_rate": 2}, ["row 2", "pass_rate"]),
        ({"subset": None}, ["row 2", "subset"]),
        ({"model": [1]}, ["row 2", "model"]),
        ({"model": "m" * 100_000}, ["row 2", "model", "100,000 characters"]),
        ({"amount": "1_500"}, ["row 2", "amount='1_500'"]),
        ({"amount": "١٥"}, ["row 2", "amount='١٥'"]),
        ({"a" * 100_000: 1}, ["no column is called 'aaa"]),
        ({"acuracy": 0.2}, ["'acuracy'", "did you mean accuracy"]),
        ({"accuracy": 0.4, "subset": "a"}, ["row 2", "row 1", "another accuracy"]),
        ({"loss": 2.4}, ["row 2", "2.5", "2.4"]),
    ],
)
def test_a_bad_row_is_named(changes, words, tmp_path):
    second = FIRST | {"subset": "b"} | changes
    path = write(tmp_path / "table.jsonl", [FIRST, second])
    with pytest.raises(UserError) as error:
        read(storage.path(path))
    message = str(error.value)
    assert str(path) in message and [word for word in words if word not in message] == [], message
    assert len(message) < 400 and "\n" not in message


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("table.txt", b"", ["*.csv"]),
        ("none.csv", None, ["no such file"]),
        ("table.jsonl", b"", ["no rows"]),
        ("table.jsonl", b'{"loss": 2, "amount": 1}\n', [":1", "accuracy missing"]),
        ("table.jsonl", b'{"loss": 2, "amount": 1, "accuracy": NaN}\n', [":1", "NaN"]),
        ("table.jsonl", b'{"loss": 2,\n', [":1", "JSON"]),
        ("table.jsonl", b"3\n", [":1", "not a row"]),
        ("table.csv", b"", ["empty"]),
        ("table.csv", b"loss,amount\n1,2\n", ["no column accuracy"]),
        ("table.csv", b"loss,amount,accuracy\n", ["no rows"]),
        ("table.csv", b"loss,amount,accuracy\n2,1\n", ["row 1", "2 values for 3 columns"]),
        ("table.csv", b"loss,loss,amount,accuracy\n2,1,1,1\n", ["same name"]),
        ("table.csv", b"loss,amount,accuracy\n\xff,1,1\n", ["UTF-8"]),
        ("table.csv", b'loss,amount,accuracy\n"2,1,1\n', ["CSV"]),
        ("table.parquet", b"PAR1 and more", ["cannot be read"]),
    ],
)
def test_a_bad_file_is_one_mistake(name, data, words, tmp_path):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as error:
        asked(path, tmp_path / "run")
    assert [word for word in (name, *words) if word not in str(error.value)] == [], str(error.value)
    assert not (tmp_path / "run" / "forecast.json").exists()
