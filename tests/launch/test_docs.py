"""The launchers' commands in the README and in docs/pods.md, each as it stands there, but for --dry_run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = "".join(
    block
    for page in ("README.md", "docs/pods.md")
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.S)
)
LINES = BLOCKS.replace("\\\n", " ").splitlines()
COMMANDS = [shlex.split(line, comments=True) for line in LINES if line.startswith("python -m launch.")]
SENDING = [command for command in COMMANDS if command[2] != "launch.supervise"]


@pytest.mark.parametrize("command", SENDING, ids=lambda command: " ".join(command[2:5]))
def test_a_launchers_command(command):
    at = 4 if command[2] == "launch.tpu_vm" else 3  # behind the step
    command = [sys.executable, *command[1:at], "--dry_run", *command[at:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_every_launcher_is_shown():
    assert {command[2] for command in COMMANDS} == {f"launch.{n}" for n in ("gke", "tpu_vm", "xm_launch", "supervise")}


def test_no_file_holds_a_project_an_account_or_a_registry():
    """Addresses of Google's accounts and registries have a name in capitals, for people to fill in, or a variable."""
    files = [*(ROOT / "launch").rglob("*"), ROOT / "docs" / "pods.md", ROOT / "README.md"]
    text = "".join(path.read_text() for path in files if path.is_file() and path.suffix != ".pyc")
    assert re.findall(r"[\w-]+@[\w-]+\.iam", text)  # there are some
    accounts = re.findall(r"@([\w-]+)\.iam\.gserviceaccount", text)
    buckets = re.findall(r"gs://([\w-]+)", text)
    registries = re.findall(r"([\w.-]*)\.(?:pkg\.dev|gcr\.io)/?([\w-]*)", text)
    assert set(accounts) == {"PROJECT"} and set(buckets) == {"BUCKET"}
    assert {name for pair in registries for name in pair} <= {"REGION-docker", "PROJECT"}
