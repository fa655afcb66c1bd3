"""The configs that come with the program, found from a checkout and from an installed package, from any folder."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from premem_jax import keys, recipes
from tests.processes import ENVIRONMENT

ROOT = Path(__file__).parents[1]


def test_a_config_of_the_current_folder_comes_before_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = str(ROOT / "configs" / "quickstart.py")
    for given, meant in (
        (["--config=configs/quickstart.py"], [f"--config={ours}"]),
        (["--config", "configs/quickstart.py:a=b"], ["--config", f"{ours}:a=b"]),
        (["--config.cache=configs/quickstart.py"], ["--config.cache=configs/quickstart.py"]),
        (["--config=configs/missing.py"], ["--config=configs/missing.py"]),
        (["--config=mine/configs/quickstart.py"], ["--config=mine/configs/quickstart.py"]),
    ):
        assert recipes.resolve(["premem", *given]) == ["premem", *meant]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").touch()
    assert recipes.resolve(["premem", "--config=configs/quickstart.py"])[1] == "--config=configs/quickstart.py"


def test_every_config_that_can_be_run_has_a_title():
    runnable = {file.name for file in (ROOT / "configs").glob("*.py")} - {"common.py"}
    assert set(recipes.titles()) == runnable and all(recipes.titles().values())


def program(folder: Path, *arguments: str, package: Path = ROOT) -> str:
    command = [sys.executable, "-m", "premem_jax.main", *arguments]
    environment = ENVIRONMENT | {"PYTHONPATH": str(package)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_on_a_config_tells_every_key(tmp_path):
    """From a folder with a package `configs` of its own, which must not hide the helpers of ours."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    said = program(tmp_path, "--config=configs/quickstart.py:examples=64", "--config.seed=7", "--help")
    assert "--config.data.train=64\n" in said
    assert "--config.seed=7\n" in said and said.startswith("Pre-memorization accuracy in a few minutes")
    for key, (_, about) in keys.TABLES["finetune"].items():
        assert f"--config.{key}=" in said and about in said


@pytest.mark.slow
def test_wheel_and_source_distribution_have_all_that_is_needed(tmp_path):
    """The wheel, unpacked where no checkout is, lists its configs and runs one; the sdist makes the same wheel."""
    build = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)

    def built(folder: Path, kind: str) -> Path:
        done = subprocess.run([sys.executable, "-c", build, kind, tmp_path], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return tmp_path / done.stdout.splitlines()[-1]

    with tarfile.open(built(source, "sdist")) as archive:
        archive.extractall(tmp_path / "again", filter="data")
    names = zipfile.ZipFile(built(source, "wheel")).namelist()
    wheel = zipfile.ZipFile(built(next((tmp_path / "again").iterdir()), "wheel"))
    assert sorted(wheel.namelist()) == sorted(names)
    wheel.extractall(tmp_path / "installed")
    assert {"premem_jax/py.typed", "premem_jax/configs/quickstart.py", "premem_jax/report/page.css"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"premem_jax"}
    (tmp_path / "elsewhere").mkdir()
    assert "configs/quickstart.py\n" in program(tmp_path / "elsewhere", "--help", package=tmp_path / "installed")
    arguments = ("--config=configs/squeezing_toy.py", "--workdir=run")
    program(tmp_path / "elsewhere", *arguments, package=tmp_path / "installed")
    assert (tmp_path / "elsewhere" / "run" / "summary.json").exists()
