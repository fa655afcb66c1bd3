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


@pytest.mark.parametrize("page", ["study.md", "pods.md", "../README.md"])
def test_links_to_files_lead_somewhere(page):
    path = ROOT / "docs" / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links and [link for link in links if not (path.parent / link).exists()] == []
