"""The configs that come with the program: `configs/` of a checkout, or the copy in an installed package."""

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from premem_jax.errors import UserError

HERE = Path(__file__).parent
FOLDER = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"


def resolve(argv: list[str]) -> list[str]:
    """Arguments in which `--config=configs/NAME.py` names our file, unless the current folder has such a file."""
    changed = list(argv)
    for i, argument in enumerate(argv):
        flag = re.match(r"--?config=", argument)
        start = flag[0] if flag else ""
        if not flag and (i == 0 or argv[i - 1] not in ("-config", "--config")):
            continue
        name, colon, options = argument.removeprefix(start).partition(":")
        if Path(name).parent == Path("configs") and not Path(name).exists() and (FOLDER / Path(name).name).is_file():
            changed[i] = f"{start}{FOLDER / Path(name).name}{colon}{options}"
    return changed


def make_importable() -> None:
    """Makes `from configs import common` find our files, from any folder; those of the current folder come after."""
    package = ModuleType("configs")
    package.__path__ = [str(FOLDER), str(Path("configs").absolute())]
    sys.modules["configs"] = package


def load(recipe: str) -> ConfigDict:
    """The config of `NAME[:key=value,...]`, such as `quickstart:examples=64`, with keys to change.

    Raises:
      UserError: there is no such config, or it has no such option.
    """
    name, _, options = recipe.partition(":")
    if f"{name}.py" not in titles():
        raise UserError(f"no config {name!r}; there are: {', '.join(file.removesuffix('.py') for file in titles())}")
    make_importable()
    return importlib.import_module(f"configs.{name}").get_config(options or None)


def docstring(file: str | Path) -> str:
    """What a config file says of itself."""
    return ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8"))) or ""


def titles() -> dict[str, str]:
    """File name → first line of its docstring, of each config that can be run."""
    files = (file for file in sorted(FOLDER.glob("*.py")) if "def get_config(" in file.read_text(encoding="utf-8"))
    return {file.name: docstring(file).partition("\n")[0] for file in files}
