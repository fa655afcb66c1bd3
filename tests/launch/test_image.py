"""The Dockerfile: its files, copied as it says, and its entry command, run as a process from there."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "launch" / "Dockerfile").read_text()
COMMIT = "0123abcd-dirty"  # what the build is given


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", TEXT, re.M)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """The files of the image."""
    folder = tmp_path_factory.mktemp("image")
    for line in instructions("COPY"):
        source, target = line.split()
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / target)
    return folder


def run(image: Path, command: list[str]) -> subprocess.CompletedProcess:
    """Runs an exec-form command of the image with this Python, which has what the image installs."""
    assert command[0] == "python"
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    for name, value in (pair.split("=") for line in instructions("ENV") for pair in line.split()):
        environment[name] = value.replace("${COMMIT}", COMMIT)
    return subprocess.run(
        [sys.executable, *command[1:]], cwd=image, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_entry_command_without_arguments_is_the_help(image):
    [entry], [default] = map(json.loads, instructions("ENTRYPOINT")), map(json.loads, instructions("CMD"))
    done = run(image, entry + default)
    assert done.returncode == 0, done.stderr
    assert "--config=FILE[:key=value,...]" in done.stdout


def test_the_entry_command_runs_an_experiment_with_the_files_of_the_image(image, tmp_path):
    [entry] = map(json.loads, instructions("ENTRYPOINT"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"output": "#### 4", "answer": "4"}\n{"output": "#### 5", "answer": "4"}\n')
    arguments = ["--config=configs/grade.py:task=gsm8k", f"--config.data.path={rows}", f"--workdir={tmp_path}/out"]
    done = run(image, [*entry, *arguments])
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"] == 0.5 and summary["git_commit"] == COMMIT


def test_the_supervisor_starts_the_program_in_the_image(image):
    supervise = ["python", "-m", "launch.supervise", "--max_failures=1"]
    done = run(image, [*supervise, "--", sys.executable, "-m", "premem_jax.main"])
    assert done.returncode and "error: --config is missing" in done.stderr and "gave up" in done.stderr


def test_the_image_holds_no_more_than_the_build_is_given():
    """The ignore file lets through exactly what the Dockerfile copies."""
    allowed = re.findall(r"^!(.*)$", (ROOT / "launch" / "Dockerfile.dockerignore").read_text(), re.M)
    assert sorted(allowed) == sorted(line.split()[0] for line in instructions("COPY"))


def test_every_package_that_the_image_imports_is_installed_in_it():
    """Top-level imports of what is copied: the standard library, each other, or a requirement."""
    names = {"ml_collections": "ml_collections", "orbax": "orbax-checkpoint", "absl": "absl-py", "yaml": "pyyaml"}
    names |= {"google": "protobuf", "tensorflow_datasets": "tensorflow-datasets", "markupsafe": "jinja2"}
    required = set(re.findall(r"^([\w-]+)", (ROOT / "requirements.txt").read_text(), re.M))
    imported, elsewhere = set(), ROOT / "premem_jax" / "recorder" / "callback.py"  # runs in the trainer that it records
    for folder in ("premem_jax", "configs", "launch"):
        for path in {*(ROOT / folder).rglob("*.py")} - {elsewhere}:
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"premem_jax", "configs", "launch"}
    assert "jax" in others and {name for name in others if names.get(name, name) not in required} == set()
