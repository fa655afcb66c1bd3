"""The worked example of docs/study.md, run as it stands, and links of the pages."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from premem_jax.recorder import Recorder
from tests.analysis.traces import synthetic_splits
from tests.processes import ENVIRONMENT

ROOT = Path(__file__).parents[1]
SMALL = {"epochs": (0,), "samples": 1, "max_new_tokens": 8, "first_round": 8}
TEXT = (ROOT / "docs" / "study.md").read_text()


def test_the_example_of_bringing_your_own_runs(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    *_, command = re.findall(r"```bash\npython (.*?)\n```", TEXT)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    command = command.replace("configs/", f"{ROOT}/configs/").split()
    done = subprocess.run(
        [sys.executable, *command, "--workdir=out", "--config.draws=10"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    [task] = json.loads((tmp_path / "out" / "summary.json").read_text())["tasks"].values()
    assert (task["runs"], task["threshold_name"]) == (2, "heldout_quantile")
    row = task["predictors"]["pre_memorization_accuracy"]
    assert row["n_points"] == 6 and "pre-memorization accuracy follows test accuracy" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()


def test_the_example_of_a_forecast(tmp_path):
    text = (ROOT / "docs" / "emergence.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    [command] = re.findall(r"```bash\npython (.*--workdir.*?)\n```", text)
    where = dict(cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, check=True, timeout=200)
    subprocess.run([sys.executable, "-c", code], **where)
    command = command.replace("configs/", f"{ROOT}/configs/").split()
    subprocess.run([sys.executable, *command, "--config.draws=5"], **where)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert abs(summary["elbow"] - 1.814) < 0.1 and abs(summary["verdict"]["elbow"] - 1.814) < 0.03


def blocks(page):
    """The Python code of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_the_code_of_the_python_pages(tmp_path, monkeypatch, capsys):
    """As it stands, from top to bottom, over a recorded run; all but the finetune, which the notebook's test does."""
    monkeypatch.chdir(tmp_path)
    for evaluation in (1, 2, 3):
        recorder = Recorder("runs/quickstart", task="sums", model="made up")
        splits = synthetic_splits(0, evaluation, examples=60)
        splits["heldout"] = {"example": splits["train"]["example"], "target_nll": splits["train"]["target_nll"] + 0.1}
        for split, columns in splits.items():
            nll = columns.get("target_nll")
            counts = columns.get("correct"), columns.get("samples")
            recorder.log(10 * evaluation, split, columns["example"], nll, *counts, epoch=evaluation)
    *analysis, finetuning = blocks("api.md")
    assert "finetune.run(config" in finetuning and len(analysis) == 4
    names = {}
    for code in analysis:
        exec(compile(code, "docs/api.md", "exec"), names)
    assert Path("curves.pdf").exists() and Path("examples.png").exists()
    assert -3 < names["table"]["pre_memorization_accuracy"]["r2_identity"] < 1
    examples = names["examples"]
    train = names["trace"].split("train")
    of = examples[(examples.split == "train") & (examples.step == 20)]
    np.testing.assert_array_equal(of.correct, train.correct[1])
    np.testing.assert_array_equal(of.pre_memorization_accuracy, names["metric"][1])
    np.testing.assert_array_equal(of.memorized, train.nll[1] < names["chosen"].nll(3)[1])
    assert len(examples) == 3 * 180 and set(examples[examples.split == "heldout"].samples) == {0}

    monkeypatch.chdir(tmp_path / "runs")  # there is a run that is not this one in the other folder
    for code in blocks("own_trainer.md"):
        exec(compile(code, "docs/own_trainer.md", "exec"), {})
    page = Path("runs/mine/report.html").read_text()
    assert 'id="explorer"' in page and "3 + 9 =" in page and '"11"' in page


@pytest.mark.slow
def test_the_notebook_runs_with_small_settings(tmp_path, monkeypatch):
    """In a kernel of its own; and it is stored without results, so that no old ones are shown."""
    client, formats = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = formats.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    formats.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    [settings] = [cell for cell in code if "RECIPE =" in cell.source]
    settings.source = '%matplotlib inline\nRECIPE = "quickstart:examples=16,epochs=1"\nSETTINGS = ' + repr(
        {
            "model.preset": "llama_tiny",
            "base.steps": 0,
            "data.heldout": 50,
            "data.test": 8,
            "train.batch": 8,
            "cache": str(tmp_path / "cache"),
        }
        | {f"evals.{name}_likelihood.epochs": (0,) for name in ("train", "heldout")}
        | {f"evals.{name}_accuracy.{key}": value for name in ("train", "test") for key, value in SMALL.items()}
    )
    for name, value in (ENVIRONMENT | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    figures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 2 and (tmp_path / "runs" / "notebook" / "report.html").exists()


@pytest.mark.parametrize(
    "page", ["study.md", "emergence.md", "pods.md", "api.md", "own_data.md", "own_trainer.md", "../README.md"]
)
def test_links_to_files_lead_somewhere(page):
    path = ROOT / "docs" / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links and [link for link in links if not (path.parent / link).exists()] == []
