"""The worked example of docs/study.md, run as it stands, and links of the pages."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("page", ["study.md", "emergence.md", "pods.md", "../README.md"])
def test_links_to_files_lead_somewhere(page):
    path = ROOT / "docs" / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links and [link for link in links if not (path.parent / link).exists()] == []
