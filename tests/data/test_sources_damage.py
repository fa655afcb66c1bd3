"""Files of others after truncations and flipped bits: what a strict reader of the same bytes gives, or one mistake."""

import csv
import io
import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils.epath import Path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from premem_jax.analysis import emergence_table
from premem_jax.data import collection, rows
from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.tasks import preferences
from premem_jax.tasks import task as tasks

OWN = [{"prompt": f"Wie viele Äpfel? {i}\n", "target": f" {i + 2} 🍎", "id": f"row {i}"} for i in range(4)]
PAIRS = [{"prompt": f"{i}?", "chosen": f" yes {i}", "rejected": " no", "calm": "é"} for i in range(4)]
POOL = [{"original": i, "prompt": f"{i}?", "target": f" so\n#### {i}", "answer": str(i)} for i in range(4)]
TABLE = [
    {"loss": 2.5 - 0.1 * i, "amount": 100 * (i % 2), "accuracy": 0.25 + i / 64, "model": f"m{i}", "items": 50}
    for i in range(5)
]


def lines(items) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()


def parquet(items) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(items), stream, write_page_checksum=True)
    return stream.getvalue()


def comma_separated(items) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, items[0])
    writer.writeheader()
    writer.writerows(items)
    return stream.getvalue().encode()


# ---- Strict readers: the standard library, and nothing that it would accept silently ---------------------------------


def strict(data: bytes) -> list[dict]:
    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return [json.loads(line, object_pairs_hook=once) for line in data.decode("utf-8").removesuffix("\n").split("\n")]


def own_rows(items) -> list:
    return [(item["prompt"], item["target"], item.get("id", i)) for i, item in enumerate(items)]


def pairs(items) -> list:
    return [(i["prompt"], i["chosen"], i["rejected"]) for i in items]


def pool(items) -> list:
    return [[(i["prompt"], i["target"], str(i["answer"])) for i in items if i["original"] == id] for id in range(4)]


def table(items) -> list:
    return [(i["loss"], i["amount"], i["accuracy"]) for i in items]


def read_own(path):
    found = rows.read(str(path), None)
    return [(e.prompt, e.target, name) for e, name in zip(found.examples, found.names, strict=True)]


def read_pairs(path):
    return [(e.prompt, e.target, e.rejected) for e in preferences.read(path)]


def read_pool(path):
    source = collection.pool(str(path), partial(tasks.answer_of_target, "gsm8k"))
    of = [list(source.candidates(Example(id, "", "", ""))) for id in range(4)]
    return [[(e.prompt, e.target, e.answer) for e in found] for found in of]


def read_table(path):
    found, _ = emergence_table.read(Path(path))
    return list(zip(*(x.tolist() for x in found[:3]), strict=True))


KINDS = {
    "own.jsonl": (lines(OWN), read_own, lambda data: own_rows(strict(data))),
    "own.parquet": (parquet(OWN), read_own, None),
    "pairs.jsonl": (lines(PAIRS), read_pairs, lambda data: pairs(strict(data))),
    "pool.jsonl": (lines(POOL), read_pool, lambda data: pool(strict(data))),
    "table.jsonl": (lines(TABLE), read_table, lambda data: table(strict(data))),
    "table.csv": (comma_separated(TABLE), read_table, None),
    "table.parquet": (parquet(TABLE), read_table, None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damage")


@pytest.mark.parametrize("kind", KINDS)
@given(cut=st.none() | st.integers(0, 1 << 20), flips=st.lists(st.integers(0, 1 << 24), max_size=3))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_refused_or_read_as_a_strict_reader_would(folder, kind, cut, flips):
    whole, read, expected = KINDS[kind]
    data = bytearray(whole)
    for bit in flips:
        data[bit // 8 % len(data)] ^= 1 << bit % 8
    data = bytes(data if cut is None else data[: cut % len(data)])
    path = folder / kind
    path.write_bytes(data)
    try:
        found = read(path)
    except UserError as error:
        assert "\n" not in str(error) and kind in str(error)
        assert data != whole
    else:
        if expected:
            assert found == expected(data)
        elif data == whole:
            np.testing.assert_equal(found, read(path))
