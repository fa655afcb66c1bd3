"""A folder whose run has made nothing is open to another config; one that has made anything is not."""

import os

import pytest
from ml_collections import ConfigDict

from premem_jax.errors import UserError
from premem_jax.running.lease import opened


def enter(folder, **config):
    with opened(folder, ConfigDict(config).to_dict()):
        pass


@pytest.mark.parametrize("made", ["metrics.jsonl", "unfinished.npz", "programs/score.json", "runs/a/trace/s.parquet"])
def test_a_run_that_made_something_is_refused_to_another_config(made, tmp_path):
    enter(tmp_path, seed=0)
    (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / made).write_text("")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        enter(tmp_path, seed=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    enter(tmp_path, seed=0)


def test_a_run_that_made_nothing_gives_way_with_all_that_its_start_wrote(tmp_path):
    enter(tmp_path, seed=0)
    for name in ("tokenizer.model", "examples.jsonl", "seconds.json"):
        (tmp_path / name).write_text("")
    enter(tmp_path, seed=1)
    assert os.listdir(tmp_path) == ["config.json"] and "1" in (tmp_path / "config.json").read_text()
